/* What a call from XLA holds. */

#pragma once

#include "simd.h"
#include "xla/ffi/api/c_api.h"

INLINE const XLA_FFI_Buffer *argument(const XLA_FFI_CallFrame *frame, int index) {
  return frame->args.args[index];
}

INLINE const XLA_FFI_Buffer *result(const XLA_FFI_CallFrame *frame, int index) {
  return frame->rets.rets[index];
}

/* XLA asks each handler once which interface it was compiled for, instead of calling it. */
INLINE bool is_question(XLA_FFI_CallFrame *frame) {
  if (frame->extension_start == NULL ||
      frame->extension_start->type != XLA_FFI_Extension_Metadata)
    return false;
  XLA_FFI_Metadata *answer = ((XLA_FFI_Metadata_Extension *)frame->extension_start)->metadata;
  answer->api_version.major_version = XLA_FFI_API_MAJOR;
  answer->api_version.minor_version = XLA_FFI_API_MINOR;
  return true;
}

/* The numbers of a buffer, or NULL of one that stands for none: it has a single axis, empty. */
INLINE void *filled(const XLA_FFI_Buffer *buffer) {
  return buffer->rank == 1 && buffer->dims[0] == 0 ? NULL : buffer->data;
}

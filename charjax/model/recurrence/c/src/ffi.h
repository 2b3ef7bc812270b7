/* Reading a call from XLA's foreign function interface: buffers, attributes, errors.
 *
 * A handler takes its arguments, results and attributes in order, with their dtypes and shapes. The
 * first that is not as expected is remembered in the Call; the handler returns `call_error` then and
 * touches no buffer. XLA passes dense row-major buffers. */

#pragma once

#include <stdio.h>

#include "simd.h"
#include "xla/ffi/api/c_api.h"

enum { U8 = XLA_FFI_DataType_U8, S32 = XLA_FFI_DataType_S32, F32 = XLA_FFI_DataType_F32,
       BF16 = XLA_FFI_DataType_BF16 };

typedef XLA_FFI_Buffer Buffer;

typedef struct Call {
  const XLA_FFI_CallFrame *frame;
  long arguments, results; /* how many are taken */
  char problem[160];       /* for people; "" if there is none */
} Call;

#define PROBLEM(call, ...) \
  ((call)->problem[0] ? 0 : snprintf((call)->problem, sizeof(call)->problem, __VA_ARGS__))

/* XLA asks each handler once for its API version, by a call with a metadata extension. */
static inline bool is_metadata_query(const XLA_FFI_CallFrame *frame) {
  if (frame->extension_start == NULL ||
      frame->extension_start->type != XLA_FFI_Extension_Metadata)
    return false;
  XLA_FFI_Metadata *metadata = ((XLA_FFI_Metadata_Extension *)frame->extension_start)->metadata;
  metadata->api_version.major_version = XLA_FFI_API_MAJOR;
  metadata->api_version.minor_version = XLA_FFI_API_MINOR;
  return true;
}

static inline XLA_FFI_Error *new_error(const XLA_FFI_CallFrame *frame, XLA_FFI_Error_Code code,
                                       const char *message) {
  XLA_FFI_Error_Create_Args args = {.struct_size = XLA_FFI_Error_Create_Args_STRUCT_SIZE};
  args.message = message;
  args.errc = code;
  return frame->api->XLA_FFI_Error_Create(&args);
}

static inline XLA_FFI_Error *call_error(const Call *call) {
  return new_error(call->frame, XLA_FFI_Error_Code_INVALID_ARGUMENT, call->problem);
}

/* The next argument or result, of any dtype and this rank; if there is none, a buffer of size 0. */
static inline const Buffer *peek(Call *call, const char *name, const Buffer *buffer, long rank) {
  static int64_t zeros[4];
  static const Buffer none = {.dims = zeros};
  if (buffer == NULL) PROBLEM(call, "charjax: buffer %s is missing", name);
  else if (buffer->rank != rank)
    PROBLEM(call, "charjax: buffer %s has rank %ld, not %ld", name, (long)buffer->rank, rank);
  else return buffer;
  return &none;
}

static inline const Buffer *next_argument(const Call *call) {
  const XLA_FFI_Args *args = &call->frame->args;
  return call->arguments < args->size ? args->args[call->arguments] : NULL;
}

static inline const Buffer *next_result(const Call *call) {
  const XLA_FFI_Rets *rets = &call->frame->rets;
  return call->results < rets->size ? rets->rets[call->results] : NULL;
}

static inline void *checked(Call *call, const char *name, const Buffer *buffer, int dtype,
                            int rank, const long *dims) {
  buffer = peek(call, name, buffer, rank);
  if (call->problem[0]) return NULL;
  if ((int)buffer->dtype != dtype)
    PROBLEM(call, "charjax: buffer %s has dtype %d, not %d", name, (int)buffer->dtype, dtype);
  for (int axis = 0; axis < rank; axis++)
    if (buffer->dims[axis] != dims[axis])
      PROBLEM(call, "charjax: axis %d of %s has size %ld, not %ld", axis, name,
              (long)buffer->dims[axis], dims[axis]);
  return buffer->data;
}

/* ARGUMENT(call, name, dtype, sizes...): the data of the next argument, and RESULT of the next
 * result; NULL, and a problem, where its dtype or shape is another. */
#define SHAPE(...) sizeof((long[]){__VA_ARGS__}) / sizeof(long), (long[]){__VA_ARGS__}
#define ARGUMENT(call, name, dtype, ...) \
  taken_argument(call, name, dtype, SHAPE(__VA_ARGS__))
#define RESULT(call, name, dtype, ...) taken_result(call, name, dtype, SHAPE(__VA_ARGS__))

static inline void *taken_argument(Call *call, const char *name, int dtype, int rank,
                                   const long *dims) {
  void *data = checked(call, name, next_argument(call), dtype, rank, dims);
  call->arguments++;
  return data;
}

static inline void *taken_result(Call *call, const char *name, int dtype, int rank,
                                 const long *dims) {
  void *data = checked(call, name, next_result(call), dtype, rank, dims);
  call->results++;
  return data;
}

/* Whether a dtype of matmul operands is bf16 and not float32; a problem if it is neither. */
static inline bool is_bf16(Call *call, const Buffer *buffer) {
  const int dtype = buffer->dtype;
  if (dtype != F32 && !(HAS_BF16 && dtype == BF16))
    PROBLEM(call, "charjax: no matmul of operands of dtype %d", dtype);
  return dtype == BF16;
}

static inline void *attribute(Call *call, const char *name, XLA_FFI_AttrType type) {
  const XLA_FFI_Attrs *attrs = &call->frame->attrs;
  for (int64_t i = 0; i < attrs->size; i++)
    if (attrs->types[i] == type && attrs->names[i]->len == strlen(name) &&
        memcmp(attrs->names[i]->ptr, name, strlen(name)) == 0)
      return attrs->attrs[i];
  PROBLEM(call, "charjax: attribute %s is missing", name);
  return NULL;
}

static inline bool bool_attribute(Call *call, const char *name) {
  const XLA_FFI_Scalar *scalar = attribute(call, name, XLA_FFI_AttrType_SCALAR);
  return scalar != NULL && scalar->dtype == XLA_FFI_DataType_PRED && *(bool *)scalar->value;
}

/* "" if it is missing. */
static inline XLA_FFI_ByteSpan string_attribute(Call *call, const char *name) {
  const XLA_FFI_ByteSpan *span = attribute(call, name, XLA_FFI_AttrType_STRING);
  return span == NULL ? (XLA_FFI_ByteSpan){"", 0} : *span;
}

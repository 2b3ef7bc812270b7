/* Reading a call from XLA's foreign function interface: buffers, errors.
 *
 * A handler takes its arguments and results in order, with their dtypes and shapes. The first that
 * is not as expected is remembered in the Call; the handler returns `call_error` then and touches no
 * buffer. XLA passes dense row-major buffers. */

#pragma once

#include <stdio.h>

#include "simd.h"
#include "xla/ffi/api/c_api.h"

enum { S32 = XLA_FFI_DataType_S32, F32 = XLA_FFI_DataType_F32, BF16 = XLA_FFI_DataType_BF16 };

typedef XLA_FFI_Buffer Buffer;

/* The arguments or the results of a call. */
typedef struct Buffers {
  void *const *all;
  long count, taken;
} Buffers;

typedef struct Call {
  const XLA_FFI_CallFrame *frame;
  Buffers arguments, results;
  char problem[160]; /* for people; "" if there is none */
} Call;

#define PROBLEM(call, ...) \
  ((call)->problem[0] ? 0 : snprintf((call)->problem, sizeof(call)->problem, __VA_ARGS__))

/* XLA's function of this name, called with fields of its struct of arguments. */
#define XLA_CALL(frame, name, ...)                             \
  (frame)->api->XLA_FFI_##name(&(XLA_FFI_##name##_Args){       \
      .struct_size = XLA_FFI_##name##_Args_STRUCT_SIZE, __VA_ARGS__})

static inline Call new_call(const XLA_FFI_CallFrame *frame) {
  return (Call){.frame = frame,
                .arguments = {frame->args.args, frame->args.size, 0},
                .results = {frame->rets.rets, frame->rets.size, 0}};
}

/* XLA asks each handler once for its API version, by a call with a metadata extension. */
static inline bool is_metadata_query(const XLA_FFI_CallFrame *frame) {
  __auto_type extension = frame->extension_start; /* a type that jax 0.12 has renamed */
  if (extension == NULL || extension->type != XLA_FFI_Extension_Metadata) return false;
  XLA_FFI_Metadata *metadata = ((XLA_FFI_Metadata_Extension *)extension)->metadata;
  metadata->api_version.major_version = XLA_FFI_API_MAJOR;
  metadata->api_version.minor_version = XLA_FFI_API_MINOR;
  return true;
}

static inline XLA_FFI_Error *call_error(const Call *call) {
  return XLA_CALL(call->frame, Error_Create, .message = call->problem,
                  .errc = XLA_FFI_Error_Code_INVALID_ARGUMENT);
}

/* Buffers that are not yet taken. */
static inline long num_left(const Buffers *buffers) { return buffers->count - buffers->taken; }

/* The next buffer; NULL if none is left. */
static inline const Buffer *next_buffer(const Buffers *buffers) {
  return num_left(buffers) > 0 ? buffers->all[buffers->taken] : NULL;
}

/* The sizes of a buffer of this rank; zeros, and a problem, if it is missing or has another. */
static inline const int64_t *sizes_of(Call *call, const char *name, const Buffer *buffer,
                                      long rank) {
  static const int64_t zeros[4];
  if (buffer == NULL) PROBLEM(call, "charjax: buffer %s is missing", name);
  else if (buffer->rank != rank)
    PROBLEM(call, "charjax: buffer %s has rank %ld, not %ld", name, (long)buffer->rank, rank);
  else return buffer->dims;
  return zeros;
}

static inline void *take(Call *call, Buffers *buffers, const char *name, int dtype, long rank,
                         const long *expected) {
  const Buffer *buffer = next_buffer(buffers);
  const int64_t *sizes = sizes_of(call, name, buffer, rank);
  buffers->taken++;
  if (call->problem[0]) return NULL;
  if ((int)buffer->dtype != dtype)
    PROBLEM(call, "charjax: buffer %s has dtype %d, not %d", name, (int)buffer->dtype, dtype);
  for (int axis = 0; axis < rank; axis++)
    if (sizes[axis] != expected[axis])
      PROBLEM(call, "charjax: axis %d of %s has size %ld, not %ld", axis, name,
              (long)sizes[axis], expected[axis]);
  return buffer->data;
}

/* ARGUMENT(call, name, dtype, sizes...): the data of the next argument, and RESULT of the next
 * result; NULL, and a problem, where its dtype or shape is another. */
#define SHAPE(...) sizeof((long[]){__VA_ARGS__}) / sizeof(long), (long[]){__VA_ARGS__}
#define ARGUMENT(call, name, dtype, ...) \
  take(call, &(call)->arguments, name, dtype, SHAPE(__VA_ARGS__))
#define RESULT(call, name, dtype, ...) \
  take(call, &(call)->results, name, dtype, SHAPE(__VA_ARGS__))

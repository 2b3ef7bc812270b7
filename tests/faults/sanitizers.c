/* Calls the handlers of the C kernels as XLA does, with odd shapes: run by sanitizers.py.
 *
 * Every buffer is an allocation of exactly its size, so that AddressSanitizer sees an access beside
 * it. Every call is made on one thread and again on several, with results that held other bytes
 * before: the results must have the same bits. The buffers are read, and freed, as soon as a call
 * returns, though helpers of the pool may still be leaving it, as under XLA.
 *
 * Usage: sanitizers SHAPES SEED, or sanitizers plant, which makes a mistake for each sanitizer. */

#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "xla/ffi/api/c_api.h"

typedef XLA_FFI_Error *Handler(XLA_FFI_CallFrame *frame);
typedef long ForwardLength(const char *cell, long hidden, long batch, long vocab);
typedef long BackwardLength(const char *cell, long hidden, long batch);
typedef long Length(long rows, long columns);
typedef long LossLength(long features, long vocab, long tiles);
extern const int charjax_vector_width, charjax_tiles_per_item;

#define HANDLERS(dtype, ...)                                                                     \
  extern Handler charjax_forward_##dtype __VA_ARGS__, charjax_backward_##dtype __VA_ARGS__,      \
      charjax_weight_gradient_##dtype __VA_ARGS__, charjax_pack_##dtype __VA_ARGS__,             \
      charjax_multiply_##dtype __VA_ARGS__,                                                      \
      charjax_cross_entropy_forward_##dtype __VA_ARGS__,                                         \
      charjax_cross_entropy_backward_##dtype __VA_ARGS__;                                        \
  extern ForwardLength charjax_forward_length_##dtype __VA_ARGS__;                               \
  extern BackwardLength charjax_backward_length_##dtype __VA_ARGS__;                             \
  extern Length charjax_weight_gradient_length_##dtype __VA_ARGS__,                              \
      charjax_pack_length_##dtype __VA_ARGS__;                                                   \
  extern LossLength charjax_cross_entropy_forward_length_##dtype __VA_ARGS__,                    \
      charjax_cross_entropy_backward_length_##dtype __VA_ARGS__;                                 \
  static struct Handlers dtype##_handlers(void) {                                                \
    return (struct Handlers){charjax_forward_##dtype, charjax_backward_##dtype,                  \
                             charjax_weight_gradient_##dtype, charjax_pack_##dtype,              \
                             charjax_multiply_##dtype, charjax_cross_entropy_forward_##dtype,    \
                             charjax_cross_entropy_backward_##dtype,                             \
                             charjax_forward_length_##dtype, charjax_backward_length_##dtype,    \
                             charjax_weight_gradient_length_##dtype,                             \
                             charjax_pack_length_##dtype,                                        \
                             charjax_cross_entropy_forward_length_##dtype,                       \
                             charjax_cross_entropy_backward_length_##dtype};                     \
  }

struct Handlers {
  Handler *forward, *backward, *weight_gradient, *pack, *multiply;
  Handler *cross_entropy_forward, *cross_entropy_backward;
  ForwardLength *forward_length; /* of the last result of each */
  BackwardLength *backward_length;
  Length *weight_gradient_length, *pack_length;
  LossLength *cross_entropy_forward_length, *cross_entropy_backward_length;
};

HANDLERS(float32)
HANDLERS(bfloat16, __attribute__((weak))) /* which not every processor has */

enum { F32 = XLA_FFI_DataType_F32, BF16 = XLA_FFI_DataType_BF16, S32 = XLA_FFI_DataType_S32 };
enum { THREADS = 4, MAX_BUFFERS = 16, MAX_RANK = 4 };

static const struct Cell {
  const char *name;
  int gates, states, extra;
  bool reset_after;
} CELLS[] = {{"rnn", 1, 1, 0, false}, {"gru", 3, 1, 1, true}, {"lstm", 4, 2, 1, false}};

/* Random numbers: a linear congruential generator, of which the high bits are used. */

static uint64_t state;

static uint32_t random_bits(void) {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return (uint32_t)(state >> 32);
}

static long random_below(long end) { return (long)(random_bits() % (uint64_t)end); }

static float random_float(void) { return (float)(int32_t)random_bits() / 2147483648.0f; }

/* XLA, as far as the handlers use it. */

static long pool_size;
static pthread_t helpers[1 << 10];
static long num_helpers;

typedef struct Task {
  XLA_FFI_Task *run;
  void *data;
} Task;

static void *run_task(void *argument) {
  const Task task = *(Task *)argument;
  free(argument);
  task.run(task.data);
  return NULL;
}

static XLA_FFI_Error *schedule(XLA_FFI_ThreadPool_Schedule_Args *args) {
  Task *task = malloc(sizeof *task);
  *task = (Task){args->task, args->data};
  if (pthread_create(&helpers[num_helpers++], NULL, run_task, task) != 0) abort();
  return NULL;
}

static XLA_FFI_Error *num_threads(XLA_FFI_ThreadPool_NumThreads_Args *args) {
  *args->num_threads = pool_size;
  return NULL;
}

static XLA_FFI_Error *refuse(XLA_FFI_Error_Create_Args *args) {
  fprintf(stderr, "a handler refuses its call: %s\n", args->message);
  exit(1);
}

static const XLA_FFI_Api API = {.XLA_FFI_Error_Create = refuse,
                                .XLA_FFI_ThreadPool_Schedule = schedule,
                                .XLA_FFI_ThreadPool_NumThreads = num_threads};

/* The handlers start no more workers than there are processors. */
int sched_getaffinity(pid_t process, size_t size, cpu_set_t *set) {
  (void)process;
  memset(set, 0, size);
  for (int i = 0; i < THREADS; i++) CPU_SET_S(i, size, set);
  return 0;
}

/* Buffers. */

typedef struct Array {
  XLA_FFI_Buffer buffer;
  int64_t dims[MAX_RANK];
  size_t bytes;
  bool is_scratch, has_gaps; /* gaps: padding that is never read */
} Array;

static Array *new_array(int dtype, int rank, ...) {
  Array *array = calloc(1, sizeof *array);
  array->buffer = (XLA_FFI_Buffer){.dtype = dtype, .rank = rank, .dims = array->dims};
  array->bytes = dtype == BF16 ? 2 : 4;
  va_list sizes;
  va_start(sizes, rank);
  for (int axis = 0; axis < rank; axis++)
    array->bytes *= (size_t)(array->dims[axis] = va_arg(sizes, long));
  va_end(sizes);
  if (posix_memalign(&array->buffer.data, 64, array->bytes) != 0) abort();
  return array;
}

static Array *scratch(int dtype, long size) {
  Array *array = new_array(dtype, 1, size);
  array->is_scratch = true;
  return array;
}

static Array *random_array(int rank, long first, long second, long third) {
  Array *array = new_array(F32, rank, first, second, third);
  for (size_t i = 0; i < array->bytes / 4; i++) ((float *)array->buffer.data)[i] = random_float();
  return array;
}

/* [rows, k] in the dtype of a matmul's operands; in bfloat16 k is padded by a zero to be even. */
static Array *random_states(int dtype, long rows, long k) {
  if (dtype == F32) return random_array(2, rows, k, 0);
  Array *array = new_array(BF16, 2, rows, k + k % 2);
  for (long i = 0; i < rows * (k + k % 2); i++) {
    const float number = i % (k + k % 2) < k ? random_float() : 0.0f;
    memcpy((uint16_t *)array->buffer.data + i, (const uint16_t *)&number + 1, 2);
  }
  return array;
}

/* Numbers from `low` to before `end`. */
static Array *random_integers(int rank, long first, long second, long low, long end) {
  Array *array = new_array(S32, rank, first, second);
  for (size_t i = 0; i < array->bytes / 4; i++)
    ((int32_t *)array->buffer.data)[i] = (int32_t)(low + random_below(end - low));
  return array;
}

static void free_array(Array *array) {
  free(array->buffer.data);
  free(array);
}

/* Calls. */

typedef struct Arrays {
  Array *items[MAX_BUFFERS];
  long count;
} Arrays;

static void add(Arrays *arrays, Array *array) { arrays->items[arrays->count++] = array; }

static bool contains(const Arrays *arrays, const Array *array) {
  for (long i = 0; i < arrays->count; i++)
    if (arrays->items[i] == array) return true;
  return false;
}

static long num_calls;

/* Fills the results with `byte`, except those that take an argument's memory, and calls. */
static void call_once(Handler *handler, const char *cell, const Arrays *arguments,
                      const Arrays *results, int byte) {
  void *args[MAX_BUFFERS], *rets[MAX_BUFFERS];
  XLA_FFI_ArgType arg_types[MAX_BUFFERS];
  XLA_FFI_RetType ret_types[MAX_BUFFERS];
  for (long i = 0; i < arguments->count; i++) {
    args[i] = &arguments->items[i]->buffer;
    arg_types[i] = XLA_FFI_ArgType_BUFFER;
  }
  for (long i = 0; i < results->count; i++) {
    rets[i] = &results->items[i]->buffer;
    ret_types[i] = XLA_FFI_RetType_BUFFER;
    if (!contains(arguments, results->items[i]))
      memset(results->items[i]->buffer.data, byte, results->items[i]->bytes);
  }
  XLA_FFI_ByteSpan name = {"cell", 4}, value = {cell, cell ? strlen(cell) : 0};
  XLA_FFI_ByteSpan *names[] = {&name};
  XLA_FFI_AttrType types[] = {XLA_FFI_AttrType_STRING};
  void *values[] = {&value};
  XLA_FFI_CallFrame frame = {.api = &API, .stage = XLA_FFI_ExecutionStage_EXECUTE};
  frame.args = (XLA_FFI_Args){.size = arguments->count, .types = arg_types, .args = args};
  frame.rets = (XLA_FFI_Rets){.size = results->count, .types = ret_types, .rets = rets};
  frame.attrs = (XLA_FFI_Attrs){.size = cell ? 1 : 0, .types = types, .names = names,
                                .attrs = values};
  if (handler(&frame) != NULL) abort();
  num_calls++;
}

/* Calls twice, compares, and frees the scratch. */
static void call(Handler *handler, const char *cell, const Arrays *arguments, Arrays *results) {
  void *first[MAX_BUFFERS];
  pool_size = 1;
  call_once(handler, cell, arguments, results, 0xff); /* NaN */
  for (long i = 0; i < results->count; i++) {
    const Array *array = results->items[i];
    first[i] = malloc(array->bytes);
    memcpy(first[i], array->buffer.data, array->bytes);
  }
  pool_size = THREADS;
  call_once(handler, cell, arguments, results, 0x3f);
  for (long i = 0; i < results->count; i++) {
    const Array *array = results->items[i];
    const bool is_equal = memcmp(first[i], array->buffer.data, array->bytes) == 0;
    if (!is_equal && !array->is_scratch && !array->has_gaps) {
      fprintf(stderr, "result %ld differs between one thread and several\n", i);
      exit(1);
    }
    free(first[i]);
  }
  for (long i = 0; i < results->count; i++)
    if (results->items[i]->is_scratch) free_array(results->items[i]);
}

/* One layer. */

typedef struct Shape {
  const struct Cell *cell;
  int dtype;
  struct Handlers handlers;
  bool has_resets, has_table;
  long batch, time, hidden, vocab;
} Shape;

static long ceil_div(long count, long by) { return (count + by - 1) / by; }
static long padded(long count) { return ceil_div(count, charjax_vector_width) * charjax_vector_width; }

static long state_panels(const Shape *s) { return ceil_div(s->batch, charjax_vector_width); }

/* Operands of matmuls at every position, in tiles: see src/sequence.h. */
static Array *tiles(const Shape *s, int dtype, long features) {
  return new_array(dtype, 4, s->time, state_panels(s), features, (long)charjax_vector_width);
}

/* Features of a tile. */
static long even(long features) { return features + features % 2; }

static Array *forward_scratch(const Shape *s) {
  const long vocab = s->has_table ? s->vocab : 0;
  return scratch(s->dtype,
                 s->handlers.forward_length(s->cell->name, s->hidden, s->batch, vocab));
}

static Shape random_shape(long number) {
  static const long batches[] = {1,  2,  3,  4,  5,  7,  8,  9,  15, 16,
                                 17, 23, 31, 32, 33, 37, 48, 63, 64, 65};
  Shape s = {.cell = &CELLS[number % 3]};
  s.dtype = number / 3 % 2 && bfloat16_handlers().forward != NULL ? BF16 : F32;
  s.handlers = s.dtype == BF16 ? bfloat16_handlers() : float32_handlers();
  s.has_resets = number / 6 % 2;
  s.has_table = number / 12 % 2;
  s.batch = batches[random_below(sizeof batches / sizeof *batches)];
  s.time = 1 + random_below(7);
  s.hidden = 1 + random_below(random_below(8) ? 60 : 300);
  s.vocab = 1 + random_below(130);
  return s;
}

static Array *input_gates(const Shape *s) {
  const long rows = s->cell->gates * s->hidden;
  if (s->has_table) return random_array(2, rows, s->vocab, 0);
  return random_array(3, rows, s->time, s->batch);
}

/* The gradient of the recurrent kernel, and of a table where there are tokens. */
static void call_weight_gradient(const Shape *s, long rows, Array *previous, Array *d_hgates,
                                 Array *tokens) {
  const long columns = d_hgates->dims[2];
  Array some_rows = *previous;
  some_rows.buffer.dims = some_rows.dims;
  some_rows.dims[2] = rows;
  Arrays arguments = {{&some_rows, d_hgates}, 2}, results = {0};
  add(&results, new_array(F32, 2, rows, columns));
  if (tokens != NULL) {
    add(&arguments, tokens);
    const long lanes = charjax_vector_width;
    add(&results, new_array(F32, 3, padded(columns) / lanes, s->vocab, lanes));
  }
  const long size = s->handlers.weight_gradient_length(rows, s->time * state_panels(s));
  add(&results, scratch(s->dtype, size));
  call(s->handlers.weight_gradient, NULL, &arguments, &results);
  for (long i = 0; i < results.count - 1; i++) free_array(results.items[i]);
}

/* The matmul of sampling: rows of states times the packed kernel. */
static void call_packed(const Shape *s, Array *kernel) {
  const long k = s->hidden, columns = s->cell->gates * s->hidden;
  Arrays arguments = {{kernel}, 1}, results = {0};
  Array *panels = new_array(s->dtype, 1, s->handlers.pack_length(k, columns));
  panels->has_gaps = true;
  add(&results, panels);
  call(s->handlers.pack, NULL, &arguments, &results);
  Array *states = random_states(s->dtype, s->batch, k);
  arguments = (Arrays){{states, panels}, 2};
  results = (Arrays){{new_array(F32, 2, s->batch, columns)}, 1};
  call(s->handlers.multiply, NULL, &arguments, &results);
  free_array(results.items[0]);
  free_array(panels);
  free_array(states);
}

/* The cross entropy of outputs with targets, some of them outside the vocabulary. */
static void call_cross_entropy(const Shape *s, Array *outputs) {
  const long hidden = s->hidden, vocab = s->vocab, width = charjax_vector_width;
  const long num_tiles = padded(s->time * s->batch) / width;
  Array *kernel = random_array(2, hidden, vocab, 0), *bias = random_array(1, vocab, 0, 0);
  Array *targets = random_integers(2, s->time, s->batch, -1, vocab + 1);
  Array *d_nats = random_array(2, s->time, s->batch, 0);
  Array *exps = new_array(F32, 3, num_tiles, vocab, width);
  Array *sums = new_array(F32, 2, num_tiles, width);
  Arrays arguments = {{kernel, targets, outputs, bias}, 4};
  Arrays results = {{exps, sums, new_array(F32, 2, num_tiles, width)}, 3};
  long length = s->handlers.cross_entropy_forward_length(hidden, vocab, num_tiles);
  add(&results, scratch(s->dtype, length));
  call(s->handlers.cross_entropy_forward, NULL, &arguments, &results);
  free_array(results.items[2]);

  arguments = (Arrays){{kernel, targets, outputs, exps, sums, d_nats}, 6};
  results = (Arrays){{new_array(F32, 2, vocab, hidden)}, 1};
  add(&results, new_array(F32, 2, ceil_div(num_tiles, charjax_tiles_per_item), vocab));
  add(&results, new_array(F32, 3, hidden, s->time, s->batch));
  length = s->handlers.cross_entropy_backward_length(hidden, vocab, num_tiles);
  add(&results, scratch(s->dtype, length));
  call(s->handlers.cross_entropy_backward, NULL, &arguments, &results);
  for (long i = 0; i < 3; i++) free_array(results.items[i]);
  Array *rest[] = {kernel, bias, targets, d_nats, exps, sums};
  for (size_t i = 0; i < sizeof rest / sizeof *rest; i++) free_array(rest[i]);
}

/* Calls backward again, with the first results in the memory of these residuals, and compares. */
static void call_in_place(const Shape *s, long scratch_length, const Arrays *arguments,
                          const Arrays *gradients, Array *residuals[2]) {
  Arrays results = *gradients;
  for (long i = 0; i < 2; i++)
    if (residuals[i]) results.items[i] = residuals[i];
  Array *last = results.items[results.count - 1] = scratch(s->dtype, scratch_length);
  call_once(s->handlers.backward, s->cell->name, arguments, &results, 0xff);
  for (long i = 0; i < results.count - 1; i++) {
    const Array *want = gradients->items[i], *got = results.items[i];
    if (memcmp(want->buffer.data, got->buffer.data, want->bytes)) {
      fprintf(stderr, "result %ld differs in the memory of a residual\n", i);
      exit(1);
    }
  }
  free_array(last);
}

/* Forward without and with residuals, backward, the weights' gradients, the matmul of sampling, the
 * cross entropy. */
static void check(const Shape *s) {
  const struct Cell *cell = s->cell;
  const long hidden = s->hidden, time = s->time, batch = s->batch, rows = cell->gates * hidden;
  Array *kernel = random_array(2, hidden, rows, 0);
  Array *tokens = s->has_table ? random_integers(2, time, batch, 0, s->vocab) : NULL;
  Array *keep = s->has_resets ? random_integers(2, time, batch, -1, 1) : NULL;

  Arrays arguments = {{kernel}, 1}, inputs = {0};
  if (cell->reset_after) add(&inputs, random_array(1, hidden, 0, 0));
  add(&inputs, input_gates(s));
  if (tokens) add(&inputs, tokens);
  Array *initial[2];
  for (int i = 0; i < cell->states; i++)
    add(&inputs, initial[i] = random_array(2, hidden, batch, 0));
  if (keep) add(&inputs, keep);
  for (long i = 0; i < inputs.count; i++) add(&arguments, inputs.items[i]);

  Arrays plain = {{new_array(F32, 3, hidden, time, batch)}, 1}, saved = {0};
  for (int i = 0; i < cell->states; i++) add(&plain, new_array(F32, 2, hidden, batch));
  const long num_plain = plain.count;
  add(&plain, forward_scratch(s));
  call(s->handlers.forward, cell->name, &arguments, &plain);

  add(&saved, new_array(F32, 3, hidden, time, batch));
  for (int i = 0; i < cell->states; i++) add(&saved, new_array(F32, 2, hidden, batch));
  Array *previous = tiles(s, s->dtype, even(hidden));
  Array *gates = tiles(s, F32, cell->gates * even(hidden));
  Array *extra = cell->extra ? tiles(s, F32, even(hidden)) : NULL;
  gates->has_gaps = hidden % 2 == 1;
  add(&saved, previous);
  add(&saved, gates);
  if (extra) add(&saved, extra);
  if (extra) extra->has_gaps = gates->has_gaps;
  add(&saved, forward_scratch(s));
  call(s->handlers.forward, cell->name, &arguments, &saved);
  for (long i = 0; i < num_plain; i++)
    if (memcmp(plain.items[i]->buffer.data, saved.items[i]->buffer.data, plain.items[i]->bytes)) {
      fprintf(stderr, "result %ld differs with residuals\n", i);
      exit(1);
    }

  Arrays backward = {{saved.items[0], gates}, 2}, gradients = {0};
  if (extra) add(&backward, extra);
  add(&backward, kernel);
  for (int i = 0; i < cell->states; i++) add(&backward, initial[i]);
  const long first_own = backward.count;
  add(&backward, random_array(3, hidden, time, batch));
  for (int i = 0; i < cell->states; i++) add(&backward, random_array(2, hidden, batch, 0));
  const long end_own = backward.count;
  if (keep) add(&backward, keep);
  Array *d_hgates = tiles(s, s->dtype, cell->gates * even(hidden)), *d_candidate = NULL;
  add(&gradients, d_hgates);
  if (!tokens) add(&gradients, new_array(s->dtype, 3, rows, time, batch)); /* d_igates */
  else if (cell->reset_after) add(&gradients, d_candidate = tiles(s, s->dtype, even(hidden)));
  if (cell->reset_after) add(&gradients, new_array(F32, 2, hidden, padded(batch)));
  for (int i = 0; i < cell->states; i++) add(&gradients, new_array(F32, 2, hidden, batch));
  const long length = s->handlers.backward_length(cell->name, hidden, batch);
  add(&gradients, scratch(s->dtype, length));
  call(s->handlers.backward, cell->name, &backward, &gradients);
  if (s->dtype == F32)
    call_in_place(s, length, &backward, &gradients, (Array *[]){gates, d_candidate ? extra : NULL});

  call_weight_gradient(s, even(hidden), previous, d_hgates, tokens);
  if (d_candidate) call_weight_gradient(s, 0, previous, d_candidate, tokens);
  call_packed(s, kernel);
  call_cross_entropy(s, saved.items[0]);

  for (long i = 0; i < num_plain; i++) free_array(plain.items[i]);
  for (long i = 0; i < saved.count - 1; i++) free_array(saved.items[i]);
  for (long i = first_own; i < end_own; i++) free_array(backward.items[i]);
  for (long i = 0; i < gradients.count - 1; i++) free_array(gradients.items[i]);
  for (long i = 0; i < inputs.count; i++) free_array(inputs.items[i]);
  free_array(kernel);
}

static long raced;

static void *race(void *unused) {
  (void)unused;
  raced++;
  return NULL;
}

/* A race, and a buffer that is shorter than its shape says. */
static void plant(void) {
  pthread_t other;
  if (pthread_create(&other, NULL, race, NULL) != 0) abort();
  raced++;
  pthread_join(other, NULL);
  Array *kernel = random_array(2, 5, 5, 0);
  Shape s = {.cell = &CELLS[0], .dtype = F32, .batch = 3, .time = 2, .hidden = 5};
  s.handlers = float32_handlers();
  kernel->buffer.data = realloc(kernel->buffer.data, kernel->bytes - 4);
  call_packed(&s, kernel);
}

int main(int count, char **words) {
  if (count == 2) {
    plant();
    return 0;
  }
  const long shapes = atol(words[1]);
  state = (uint64_t)atol(words[2]);
  for (long number = 0; number < shapes; number++) {
    const Shape shape = random_shape(number);
    check(&shape);
    while (num_helpers > 0) pthread_join(helpers[--num_helpers], NULL);
  }
  printf("%ld\n", num_calls);
  return 0;
}

/* written by charjax export: {{cell}} {{layers}} x {{hidden}}, step {{step}}
 *
 * A character model with int8 weights in C99. It allocates no memory and calls only expf, tanhf and
 * logf of the C library. As a program:
 *
 *   cc -std=c99 -O2 -DCHARJAX_MAIN model.c -lm -o model && ./model 'ROMEO:' 300 0.8 1
 *
 * In a program:
 *
 *   static charjax_state state;
 *   charjax_reset(&state, 1);
 *   charjax_feed(&state, CHARJAX_START);
 *   for (int i = 0; i < 300; i++) {
 *     int token = charjax_next(&state, 0.8f);
 *     if (token < 0) break;
 *     put(charjax_character(token));
 *     charjax_feed(&state, token);
 *   }
 *
 * It samples the same text as `charjax sample` with the dequantized weights.
 */
#include <math.h>
#include <stddef.h>
#include <stdint.h>

#define CHARJAX_{{cell}}
#define CHARJAX_LAYERS {{layers}}
#define CHARJAX_HIDDEN {{hidden}}
#define CHARJAX_GATES {{gates}}
#define CHARJAX_TOKENS {{tokens}}
#define CHARJAX_SAMPLED {{sampled}}
#define CHARJAX_CHARACTERS {{characters}}
#define CHARJAX_START {{start}}
{{options}}
typedef struct {
  float h[CHARJAX_LAYERS][CHARJAX_HIDDEN];
#ifdef CHARJAX_LSTM
  float c[CHARJAX_LAYERS][CHARJAX_HIDDEN];
#endif
  float igates[CHARJAX_GATES * CHARJAX_HIDDEN];
  float hgates[CHARJAX_GATES * CHARJAX_HIDDEN];
  float logits[CHARJAX_TOKENS];
  uint32_t key[2];
  uint32_t position;
} charjax_state;

/* Starts a text: zero carry, position 0. */
void charjax_reset(charjax_state *state, uint32_t seed);
/* Reads a token; returns 0, or -1 if there is no such token. Feed CHARJAX_START first if the prompt
   is empty or CHARJAX_BOUNDARY is defined; otherwise the prompt's first token. */
int charjax_feed(charjax_state *state, int token);
/* Samples the next token, which must then be fed; returns -1 at the end of a document.
   Temperature 0 is greedy. */
int charjax_next(charjax_state *state, float temperature);
/* The token of a code point (with CHARJAX_BYTES: of a byte); -1 if there is none. */
int charjax_token(uint32_t character);
/* The code point or byte of a token; 0xFFFD if it has none. */
uint32_t charjax_character(int token);

/* A quantized kernel: integers times scales, one scale per output. The integers of an output are
   contiguous; in a table, whose rows are looked up by token, the integers of a row are. */
typedef struct {
  const int8_t *integers;
  const float *scales;
} kernel_t;

typedef struct {
  kernel_t kernel, recurrent;
  const float *bias;
  const float *candidate_bias; /* of the candidate's hidden gate; NULL: none */
} layer_t;

{{arrays}}

static void add_matmul(float *out, kernel_t kernel, const float *x, int inputs, int outputs) {
  const int8_t *q = kernel.integers;
  for (int o = 0; o < outputs; o++, q += inputs) {
    float sum = 0;
    for (int i = 0; i < inputs; i++) sum += x[i] * (float)q[i];
    out[o] += kernel.scales[o] * sum;
  }
}

static void add_row(float *out, kernel_t table, int row, int outputs) {
  const int8_t *q = table.integers + (ptrdiff_t)row * outputs;
  for (int o = 0; o < outputs; o++) out[o] += table.scales[o] * (float)q[o];
}

/* The cell. x and s are the input gates and the hidden gates, block after block. */
static void update(charjax_state *state, int layer) {
  const int n = CHARJAX_HIDDEN;
  const float *x = state->igates, *s = state->hgates;
  float *h = state->h[layer];
#if defined CHARJAX_GRU /* reset, update, candidate */
  for (int i = 0; i < n; i++) {
    float reset = 1 / (1 + expf(-(x[i] + s[i])));
    float keep = 1 / (1 + expf(-(x[n + i] + s[n + i])));
    float candidate = tanhf(x[2 * n + i] + reset * s[2 * n + i]);
    h[i] = candidate + keep * (h[i] - candidate);
  }
#elif defined CHARJAX_LSTM /* input, forget, candidate, output */
  float *c = state->c[layer];
  for (int i = 0; i < n; i++) {
    float input = 1 / (1 + expf(-(x[i] + s[i])));
    float forget = 1 / (1 + expf(-(x[n + i] + s[n + i])));
    float output = 1 / (1 + expf(-(x[3 * n + i] + s[3 * n + i])));
    c[i] = forget * c[i] + input * tanhf(x[2 * n + i] + s[2 * n + i]);
    h[i] = output * tanhf(c[i]);
  }
#else /* one gate */
  for (int i = 0; i < n; i++) h[i] = tanhf(x[i] + s[i]);
#endif
}

int charjax_feed(charjax_state *state, int token) {
  const int gates = CHARJAX_GATES * CHARJAX_HIDDEN;
  if (token < 0 || token >= CHARJAX_TOKENS) return -1;
  for (int l = 0; l < CHARJAX_LAYERS; l++) {
    const layer_t *layer = &layers[l];
    for (int i = 0; i < gates; i++) {
      state->igates[i] = layer->bias[i];
      state->hgates[i] = 0;
    }
    if (layer->candidate_bias)
      for (int i = 0; i < CHARJAX_HIDDEN; i++)
        state->hgates[gates - CHARJAX_HIDDEN + i] = layer->candidate_bias[i];
    if (l > 0) {
      add_matmul(state->igates, layer->kernel, state->h[l - 1], CHARJAX_HIDDEN, gates);
    } else {
#ifdef CHARJAX_EMBED
      float x[CHARJAX_EMBED] = {0};
      add_row(x, embedding, token, CHARJAX_EMBED);
      add_matmul(state->igates, layer->kernel, x, CHARJAX_EMBED, gates);
#else /* one-hot */
      add_row(state->igates, layer->kernel, token, gates);
#endif
    }
    add_matmul(state->hgates, layer->recurrent, state->h[l], CHARJAX_HIDDEN, gates);
    update(state, l);
  }
  for (int i = 0; i < CHARJAX_TOKENS; i++) state->logits[i] = output_bias[i];
  add_matmul(state->logits, output_kernel, state->h[CHARJAX_LAYERS - 1], CHARJAX_HIDDEN,
             CHARJAX_TOKENS);
  return 0;
}

/* Threefry-2x32 with 20 rounds (Salmon et al. 2011), as JAX has it, of the counter (0, low). */
static void threefry(const uint32_t key[2], uint32_t low, uint32_t out[2]) {
  static const int rotations[2][4] = {{13, 15, 26, 6}, {17, 29, 16, 24}};
  const uint32_t keys[3] = {key[0], key[1], key[0] ^ key[1] ^ 0x1BD11BDAu};
  uint32_t x = keys[0], y = low + keys[1];
  for (uint32_t block = 0; block < 5; block++) {
    for (int i = 0; i < 4; i++) {
      int by = rotations[block % 2][i];
      x += y;
      y = (y << by | y >> (32 - by)) ^ x;
    }
    x += keys[(block + 1) % 3];
    y += keys[(block + 2) % 3] + block + 1;
  }
  out[0] = x;
  out[1] = y;
}

/* Standard Gumbel noise, number i of a key: -log(-log(u)), u uniform. */
static float gumbel(const uint32_t key[2], uint32_t i) {
  uint32_t bits[2];
  threefry(key, i, bits);
  float u = (float)((bits[0] ^ bits[1]) >> 9) * 0x1p-23f;
  return -logf(-logf(u > 0 ? u : 0x1p-126f));
}

void charjax_reset(charjax_state *state, uint32_t seed) {
  const uint32_t root[2] = {0, seed};
  uint32_t samples[2];
  threefry(root, 2, samples); /* 2: charjax's random stream for samples */
  threefry(samples, 0, state->key);
  state->position = 0;
  for (int l = 0; l < CHARJAX_LAYERS; l++)
    for (int i = 0; i < CHARJAX_HIDDEN; i++) {
      state->h[l][i] = 0;
#ifdef CHARJAX_LSTM
      state->c[l][i] = 0;
#endif
    }
}

int charjax_next(charjax_state *state, float temperature) {
  uint32_t key[2];
  int best = 0;
  float largest = -INFINITY;
  if (temperature > 1e30f) temperature = 1e30f; /* times noise it stays in float */
  threefry(state->key, state->position++, key);
  for (int i = 0; i < CHARJAX_SAMPLED; i++) {
    float noise = temperature > 0 ? temperature * gumbel(key, (uint32_t)i) : 0;
    if (state->logits[i] + noise > largest) {
      largest = state->logits[i] + noise;
      best = i;
    }
  }
#ifdef CHARJAX_BOUNDARY
  if (best == CHARJAX_BOUNDARY) return -1;
#endif
  return best;
}

int charjax_token(uint32_t character) {
  for (int i = 0; i < CHARJAX_CHARACTERS; i++)
    if (characters[i] == character) return i;
  return -1;
}

uint32_t charjax_character(int token) {
  return token >= 0 && token < CHARJAX_CHARACTERS ? characters[token] : 0xFFFD;
}

#ifdef CHARJAX_MAIN
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef CHARJAX_BYTES
#define UNKNOWN "byte 0x%02lX"
#else
#define UNKNOWN "U+%04lX"
#endif

enum { NOT_UTF8 = 0x110000 }; /* no character has this number */

/* The next character of a UTF-8 text; NOT_UTF8 where it is none, such as a surrogate, or a character
   in more bytes than it needs. With CHARJAX_BYTES: the next byte. */
static uint32_t read_character(const char **text) {
  uint32_t c = (unsigned char)*(*text)++;
#ifndef CHARJAX_BYTES
  static const uint32_t least[] = {0, 0x80, 0x800, 0x10000}; /* that needs so many more bytes */
  int more = c >= 0xF0 ? 3 : c >= 0xE0 ? 2 : c >= 0xC0 ? 1 : 0;
  if ((c >= 0x80 && c < 0xC0) || c >= 0xF8) return NOT_UTF8;
  if (more) c &= 0x3Fu >> more;
  for (int i = 0; i < more; i++) {
    if ((**text & 0xC0) != 0x80) return NOT_UTF8;
    c = c << 6 | ((unsigned char)*(*text)++ & 0x3Fu);
  }
  if (c < least[more] || (c >= 0xD800 && c < 0xE000) || c > 0x10FFFF) return NOT_UTF8;
#endif
  return c;
}

/* Capitals, and the characters that the model reads in their place. */
static const uint32_t capitals[][2] = {
{{capitals}}
  {0, 0}
};

/* The token of the next character of a prompt, read as the model's text was; says if there is none. */
static int read_token(const char **text) {
  uint32_t c = read_character(text);
#ifdef CHARJAX_UNIX_NEWLINES
  if (c == '\r') {
    if (**text == '\n') ++*text;
    c = '\n';
  }
#endif
  for (int i = 0; capitals[i][0]; i++)
    if (capitals[i][0] == c) {
      c = capitals[i][1];
      break;
    }
  int token = charjax_token(c);
  if (c == NOT_UTF8) fputs("the prompt is not UTF-8\n", stderr);
  else if (token < 0) fprintf(stderr, "not in the vocabulary: " UNKNOWN "\n", (unsigned long)c);
  return token;
}

static void write_character(uint32_t c) {
#ifndef CHARJAX_BYTES
  int more = c >= 0x10000 ? 3 : c >= 0x800 ? 2 : c >= 0x80 ? 1 : 0;
  if (more) {
    putchar((int)((0xF0u << (3 - more) & 0xFFu) | c >> (6 * more)));
    while (more-- > 0) putchar((int)(0x80u | (c >> (6 * more) & 0x3Fu)));
    return;
  }
#endif
  putchar((int)c);
}

static int usage(void) {
  fputs("usage: model PROMPT CHARACTERS TEMPERATURE SEED\n", stderr);
  return 2;
}

int main(int argc, char **argv) {
  static charjax_state state;
  char *ends[3]; /* of the numbers */
  if (argc != 5 || !*argv[2] || !*argv[3] || !*argv[4]) return usage();
  long left = strtol(argv[2], &ends[0], 10);
  double temperature = strtod(argv[3], &ends[1]);
  long long seed = strtoll(argv[4], &ends[2], 10);
  if (*ends[0] || *ends[1] || *ends[2] || seed < 0 || seed > UINT32_MAX) return usage();
  if (left < 0 || !(temperature >= 0 && temperature < INFINITY)) return usage();
  if (temperature > 1e30) temperature = 1e30; /* so that it fits into a float */
  const char *prompt = argv[1];
  if (!strncmp(prompt, "\xEF\xBB\xBF", 3)) prompt += 3; /* a byte order mark */
  charjax_reset(&state, (uint32_t)seed);
#ifndef CHARJAX_BOUNDARY
  if (!*prompt)
#endif
    charjax_feed(&state, CHARJAX_START);
  for (const char *text = prompt; *text;)
    if (charjax_feed(&state, read_token(&text))) return 2;
  for (const char *text = prompt; *text;) write_character(charjax_character(read_token(&text)));
  for (; left > 0; left--) {
    int token = charjax_next(&state, (float)temperature);
    if (token < 0) break;
    write_character(charjax_character(token));
    charjax_feed(&state, token);
  }
  return 0;
}
#endif

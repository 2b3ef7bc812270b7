/* The cells: one time step of each, forward and backward, elementwise on vectors of LANES sequences.
 *
 * The formulas, the order of gates and the names are those of charjax/model/cells.py. `cell` is a
 * constant wherever these functions are inlined, so that no branch on it is left. A cell is added
 * here, as a row of CELLS and a case of cell_forward and cell_backward, to VARIANTS of layer.h, and
 * to library.py. */

#pragma once

#include "ffi.h"

typedef enum Cell { RNN, GRU, LSTM, NUM_CELLS } Cell;

enum { MAX_GATES = 4, MAX_STATES = 2 };

/* charjax/model/recurrence/c/library.py has the names, too, and which cells have an extra residual. */
typedef struct CellInfo {
  const char *name;
  int gates;       /* blocks of `hidden` rows that the kernel has */
  int states;      /* arrays of the carry: h, or h and c */
  int extra;       /* numbers that the backward pass needs of a unit's step, beside its gates */
  int reset_after; /* the candidate's hidden gate has a bias, and its input gate its own gradient */
} CellInfo;

static const CellInfo CELLS[NUM_CELLS] = {
    [RNN] = {"rnn", 1, 1, 0, 0},
    [GRU] = {"gru", 3, 1, 1, 1},
    [LSTM] = {"lstm", 4, 2, 1, 0},
};

/* The cell of this name, which need not end with a zero; NUM_CELLS if there is none. */
static inline Cell cell_named(const char *name, size_t length) {
  Cell cell = 0;
  while (cell < NUM_CELLS && (length != strlen(CELLS[cell].name) ||
                              memcmp(name, CELLS[cell].name, length) != 0))
    cell++;
  return cell;
}

/* The cell that a call's only attribute names; RNN, with a problem noted, if it is unknown. */
static inline Cell cell_attribute(Call *call) {
  const XLA_FFI_Attrs *attrs = &call->frame->attrs;
  if (attrs->size != 1 || attrs->types[0] != XLA_FFI_AttrType_STRING) {
    PROBLEM(call, "charjax: attribute cell is missing");
    return RNN;
  }
  const XLA_FFI_ByteSpan *name = attrs->attrs[0];
  const Cell cell = cell_named(name->ptr, name->len);
  if (cell < NUM_CELLS) return cell;
  PROBLEM(call, "charjax: no cell '%.*s' in C", (int)min(name->len, 40), name->ptr);
  return RNN;
}

/* One unit's carry of LANES sequences, or its gradient. */
typedef struct State {
  Vector h, c; /* c only of cells with two states */
} State;

/* What the backward pass needs of a step: the gates, RNN h, GRU r, z, n, LSTM i, f, g, o; and an
 * extra number, GRU the candidate's hidden gate, LSTM c. */
typedef struct Residuals {
  Vector gates[MAX_GATES];
  Vector extra;
} Residuals;

/* The state after a step, from the gates and the state before it, and the step's residuals. `bias` is
 * added to the candidate's hidden gate. */
INLINE State cell_forward(Cell cell, const Vector igates[], const Vector hgates[],
                          const float *bias, State before, Residuals *residuals) {
  if (cell == GRU) {
    const Vector r = vec_sigmoid(igates[0] + hgates[0]), z = vec_sigmoid(igates[1] + hgates[1]);
    const Vector hgate = hgates[2] + *bias;
    const Vector n = vec_tanh(igates[2] + r * hgate);
    *residuals = (Residuals){{r, z, n}, hgate};
    return (State){.h = n + z * (before.h - n)};
  }
  if (cell == LSTM) {
    const Vector i = vec_sigmoid(igates[0] + hgates[0]), f = vec_sigmoid(igates[1] + hgates[1]);
    const Vector g = vec_tanh(igates[2] + hgates[2]), o = vec_sigmoid(igates[3] + hgates[3]);
    const Vector c = f * before.c + i * g;
    *residuals = (Residuals){{i, f, g, o}, c};
    return (State){o * vec_tanh(c), c};
  }
  const Vector h = vec_tanh(igates[0] + hgates[0]);
  *residuals = (Residuals){.gates = {h}};
  return (State){.h = h};
}

/* The gradients of a step. */
typedef struct CellGrads {
  Vector hgates[MAX_GATES];
  Vector candidate; /* of the candidate's input gate, of a cell with reset_after */
  State before;     /* of the state before it, except what flows through the hidden gates */
} CellGrads;

/* `d_after` is the gradient of the state after the step. */
INLINE CellGrads cell_backward(Cell cell, const Residuals *residuals, State before, State d_after) {
  const Vector *gates = residuals->gates, dh = d_after.h;
  CellGrads d = {.before = {broadcast(0.0f), broadcast(0.0f)}};
  if (cell == GRU) {
    const Vector r = gates[0], z = gates[1], n = gates[2], hgate = residuals->extra;
    const Vector dn = dh * (1.0f - z) * (1.0f - n * n);
    d.hgates[0] = dn * hgate * r * (1.0f - r);
    d.hgates[1] = dh * (before.h - n) * z * (1.0f - z);
    d.hgates[2] = dn * r;
    d.candidate = dn;
    d.before.h = dh * z;
  } else if (cell == LSTM) {
    const Vector i = gates[0], f = gates[1], g = gates[2], o = gates[3];
    const Vector tanh_c = vec_tanh(residuals->extra);
    const Vector dc_after = d_after.c + dh * o * (1.0f - tanh_c * tanh_c);
    d.hgates[0] = dc_after * g * i * (1.0f - i);
    d.hgates[1] = dc_after * before.c * f * (1.0f - f);
    d.hgates[2] = dc_after * i * (1.0f - g * g);
    d.hgates[3] = dh * tanh_c * o * (1.0f - o);
    d.before.c = dc_after * f;
  } else {
    d.hgates[0] = dh * (1.0f - gates[0] * gates[0]);
  }
  return d;
}

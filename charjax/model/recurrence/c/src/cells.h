/* The cells: one time step of each, forward and backward, elementwise on vectors of LANES sequences.
 *
 * The formulas, the order of gates and the names are those of charjax/model/cells.py. `cell` is a
 * constant wherever these functions are inlined, so that no branch on it is left. A cell is added
 * here alone: a row of CELLS and a case of cell_forward and cell_backward. */

#pragma once

#include "ffi.h"

typedef enum Cell { RNN, GRU, LSTM, NUM_CELLS } Cell;

enum { MAX_GATES = 4, MAX_RESIDUALS = 5 };

/* Python reads this table: charjax/model/recurrence/c/build.py has the same struct. */
typedef struct CellInfo {
  const char *name;
  int gates;       /* blocks of `hidden` rows that the kernel has */
  int states;      /* arrays of the carry: h, or h and c */
  int residuals;   /* numbers that a unit saves at each step for the backward pass */
  int reset_after; /* the candidate's hidden gate has a bias, and its input gate its own gradient */
} CellInfo;

static const CellInfo CELLS[NUM_CELLS] = {
    [RNN] = {"rnn", 1, 1, 0, 0},
    [GRU] = {"gru", 3, 1, 4, 1},
    [LSTM] = {"lstm", 4, 2, 5, 0},
};

/* Residuals of a unit: GRU r, z, n and the candidate's hidden gate; LSTM i, f, g, o and c. */
enum { LSTM_C = 4 };

/* The cell named by a call's attribute; of an unknown one RNN, and a problem. */
static inline Cell cell_attribute(Call *call) {
  const XLA_FFI_ByteSpan name = string_attribute(call, "cell");
  for (int cell = 0; cell < NUM_CELLS; cell++)
    if (name.len == strlen(CELLS[cell].name) && memcmp(name.ptr, CELLS[cell].name, name.len) == 0)
      return cell;
  PROBLEM(call, "charjax: no cell '%.*s' in C", (int)(name.len < 40 ? name.len : 40), name.ptr);
  return RNN;
}

typedef struct State {
  Vector h, c; /* c only of cells with two states */
} State;

/* The state after a step, from the gates and the state before it; writes the residuals. */
INLINE State cell_forward(Cell cell, const Vector igates[], const Vector hgates[], State before,
                          Vector residuals[]) {
  if (cell == GRU) {
    const Vector r = vec_sigmoid(igates[0] + hgates[0]), z = vec_sigmoid(igates[1] + hgates[1]);
    const Vector n = vec_tanh(igates[2] + r * hgates[2]);
    residuals[0] = r;
    residuals[1] = z;
    residuals[2] = n;
    residuals[3] = hgates[2];
    return (State){.h = n + z * (before.h - n)};
  }
  if (cell == LSTM) {
    const Vector i = vec_sigmoid(igates[0] + hgates[0]), f = vec_sigmoid(igates[1] + hgates[1]);
    const Vector g = vec_tanh(igates[2] + hgates[2]), o = vec_sigmoid(igates[3] + hgates[3]);
    const Vector c = f * before.c + i * g;
    residuals[0] = i;
    residuals[1] = f;
    residuals[2] = g;
    residuals[3] = o;
    residuals[LSTM_C] = c;
    return (State){.h = o * vec_tanh(c), .c = c};
  }
  return (State){.h = vec_tanh(igates[0] + hgates[0])};
}

/* The gradients of a step. */
typedef struct CellGrads {
  Vector hgates[MAX_GATES];
  Vector candidate; /* of the candidate's input gate, of a cell with reset_after */
  State before;     /* of the state before the step, except what flows through the gates */
} CellGrads;

/* `after` and `grad`: the state after the step (its h), and the gradient of both its parts. */
INLINE CellGrads cell_backward(Cell cell, const Vector residuals[], State before, State after,
                               State grad) {
  CellGrads d = {.before = {broadcast(0.0f), broadcast(0.0f)}};
  if (cell == GRU) {
    const Vector r = residuals[0], z = residuals[1], n = residuals[2], hgate = residuals[3];
    const Vector dn = grad.h * (1.0f - z) * (1.0f - n * n);
    d.hgates[0] = dn * hgate * r * (1.0f - r);
    d.hgates[1] = grad.h * (before.h - n) * z * (1.0f - z);
    d.hgates[2] = dn * r;
    d.candidate = dn;
    d.before.h = grad.h * z;
  } else if (cell == LSTM) {
    const Vector i = residuals[0], f = residuals[1], g = residuals[2], o = residuals[3];
    const Vector tanh_c = vec_tanh(residuals[LSTM_C]);
    const Vector dc = grad.c + grad.h * o * (1.0f - tanh_c * tanh_c);
    d.hgates[0] = dc * g * i * (1.0f - i);
    d.hgates[1] = dc * before.c * f * (1.0f - f);
    d.hgates[2] = dc * i * (1.0f - g * g);
    d.hgates[3] = grad.h * tanh_c * o * (1.0f - o);
    d.before.c = dc * f;
  } else {
    d.hgates[0] = grad.h * (1.0f - after.h * after.h);
  }
  return d;
}

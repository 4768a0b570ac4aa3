// The C interface of the compiled kernels: plain structures and functions, no torch, no C++ types.
// methods/lowrank/native.py has the same structure for ctypes; raise LOWRANK_ABI in both when it changes.
#pragma once
#include <cstdint>

#define LOWRANK_ABI 1
#define LOWRANK_MAX_RANK 256 // a call takes up to 100 KiB of its thread's stack
#define LOWRANK_BLOCK 32 // tokens that are worked on together

#define LOWRANK_PUBLIC __attribute__((visibility("default")))

extern "C" {

// One call. Pointers are to the first element, strides count elements, what is absent is null.
struct LowrankCall {
    int64_t tokens, n_base, n_active, n_users, d_in, d_out, rank; // the first n_base of `order` have no adapter
    int64_t dtype;                                                // 0 float32, 1 float64, 2 bfloat16
    const int64_t *order, *users, *offsets;                       // [T], [n_active], [n_active + 1]
    const void *x;                                                // [T, d_in], rows x_stride apart
    int64_t x_stride;
    const void *a, *b;          // [U, r, d], users a stride apart; shared: [r, d] and stride 0
    int64_t a_stride, b_stride;
    const void *core;           // [U, r, r] (core_kind 1) or [U, r] (core_kind 2)
    int64_t core_kind;
    const void *user_scale;     // [U], in the type of sums
    double scale;
    void *hidden;               // A x: [T, r] in the type of sums, in the order of the plan
    // Forward: y = base + scale B C A x.
    const void *base;           // [T, d_out]
    int64_t base_stride;
    void *y;                    // [T, d_out]
    // Backward: gradients of per-user operands have a row per user present (rows 1), or a row per user (rows 0).
    const void *dy;             // [T, d_out]
    int64_t dy_stride;
    void *dx, *da, *db, *dcore, *dscale; // da, db and dscale in the type of sums
    void *scratch;              // [3, T, r] in the type of sums
    int64_t rows, accumulate, threads;
};

LOWRANK_PUBLIC int64_t lowrank_abi(void);
LOWRANK_PUBLIC int64_t lowrank_call_bytes(void);
// Return the instruction set in use: "x86-64-v4", "x86-64-v3", "x86-64-v2", "generic", or null where there is none.
LOWRANK_PUBLIC const char *lowrank_isa(void);
// Use the named instruction set from now on; return 0, or 1 where this machine or this build does not have it.
LOWRANK_PUBLIC int64_t lowrank_use_isa(const char *name);

LOWRANK_PUBLIC void lowrank_forward(const LowrankCall *call);
LOWRANK_PUBLIC void lowrank_backward(const LowrankCall *call);
}

// What kernels.cpp, compiled once per instruction set, gives to dispatch.cpp. Tokens are named by their places
// start .. end in `order`, and `segment` is that of the first: several segments may follow each other.
struct LowrankKernels {
    void (*plain)(const LowrankCall *, int64_t start, int64_t end, bool backward); // tokens without an adapter
    void (*forward)(const LowrankCall *, int64_t segment, int64_t start, int64_t end);
    // With `whole` segments, also the gradients of what is a user's own.
    void (*backward)(const LowrankCall *, int64_t segment, int64_t start, int64_t end, bool whole);
    // The gradients of core and scale of one segment, all of whose tokens have been through `backward`.
    void (*narrow)(const LowrankCall *, int64_t segment, int64_t start, int64_t end);
    // Columns first .. last of the gradient of A (which 0) or B (which 1), put in or added to row `row` of its buffer.
    void (*factor)(const LowrankCall *, int which, int64_t row, bool add, int64_t start, int64_t end, int64_t first,
                   int64_t last);
    void (*absent)(const LowrankCall *, int64_t user); // zero the rows of a user who is not in the batch
    void (*fence)(void);
};

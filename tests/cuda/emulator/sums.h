// Sums of products, for convolutions and matrices: in single precision, in an order that depends on
// nothing but what is summed, so that a row's results are the same bits wherever it stands.
#pragma once
#include "half.h"

#include <cstddef>
#include <vector>

namespace emulator {

enum class Element { f32, f16, bf16 };

inline size_t size_of(Element element) { return element == Element::f32 ? 4 : 2; }

inline float load(Element element, const void *from, size_t at) {
    switch (element) {
    case Element::f32: return static_cast<const float *>(from)[at];
    case Element::f16: return f16_to_float(static_cast<const f16 *>(from)[at]);
    default: return bf16_to_float(static_cast<const bf16 *>(from)[at]);
    }
}

inline void store(Element element, void *to, size_t at, float x) {
    switch (element) {
    case Element::f32: static_cast<float *>(to)[at] = x; break;
    case Element::f16: static_cast<f16 *>(to)[at] = f16_of_float(x); break;
    default: static_cast<bf16 *>(to)[at] = bf16_of_float(x); break;
    }
}

// Columns that are computed together, in a vector of the compiler's.
const size_t WIDE = 16;
// Rows that are.
const size_t TALL = 6;
typedef float Vector __attribute__((vector_size(WIDE * sizeof(float)), aligned(4)));

// `sums[row][column] += Σ rows[row][i] · factors[i][column]`, for `TALL` rows and `WIDE` columns, with
// `factors` of `pitch` columns.
inline void add(Vector sums[TALL], const float *const rows[TALL], const float *factors, size_t pitch, size_t count) {
    Vector own[TALL];
    for (size_t row = 0; row < TALL; row++) own[row] = sums[row];
    for (size_t i = 0; i < count; i++) {
        Vector factor = *reinterpret_cast<const Vector *>(factors + i * pitch);
        for (size_t row = 0; row < TALL; row++) own[row] += rows[row][i] * factor;
    }
    for (size_t row = 0; row < TALL; row++) sums[row] = own[row];
}

inline size_t padded(size_t columns) { return (columns + WIDE - 1) / WIDE * WIDE; }

} // namespace emulator

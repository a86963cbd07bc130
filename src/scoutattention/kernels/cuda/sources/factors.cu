// Cholesky factors of small positive matrices, and the inverses of the factors: a matrix and the identity beside it are
// eliminated together, column by column.
//
// Compiled for NUMBER (float or double) and PARTS: a thread holds PARTS x PARTS numbers of a matrix, 16 rows and columns
// apart, so that a program holds matrices of up to 16 PARTS rows.
#include "words.cuh"

constexpr int SIDE = 16, MOST = SIDE * PARTS;

struct Step {
    NUMBER column[MOST];  // of the matrix
    NUMBER row[MOST];     // of what becomes the inverse
};

struct Tile {
    NUMBER matrix[PARTS][PARTS], inverse[PARTS][PARTS];
};

// Eliminates column j, which is in part `at` of its threads.   y, x: the thread's first row and column. Rows above are
// done, and numbers above the diagonal are not looked at.
__device__ inline void eliminate(Tile& tile, Step& step, int j, int at, int y, int x) {
    const int of = j % SIDE;
#pragma unroll
    for (int a = at; a < PARTS; ++a)
        if (x == of) step.column[y + SIDE * a] = tile.matrix[a][at];
#pragma unroll
    for (int b = 0; b <= at; ++b)
        if (y == of) step.row[x + SIDE * b] = tile.inverse[at][b];
    __syncthreads();
    const NUMBER scale = 1 / sqrt(step.column[j]);
#pragma unroll
    for (int a = at; a < PARTS; ++a) {
        const int i = y + SIDE * a;
        const NUMBER own = step.column[i] * scale, factor = i > j ? own : 0;
#pragma unroll
        for (int b = at; b < PARTS; ++b) {
            const int k = x + SIDE * b;
            tile.matrix[a][b] -= k > j ? factor * (step.column[k] * scale) : 0;
        }
        if (x == of && i >= j) tile.matrix[a][at] = own;
#pragma unroll
        for (int b = 0; b <= at; ++b) {
            const NUMBER scaled = step.row[x + SIDE * b] * scale;
            tile.inverse[a][b] = i == j ? scaled : tile.inverse[a][b] - factor * scaled;
        }
    }
}

// Grid (matrices).   matrices: [n, m, m], of which the lower half is read; entries of a row are neighbours.
// stride, row: numbers from matrix to matrix, and from row to row.   factors, inverses: [n, m, m].
extern "C" __global__ void __launch_bounds__(SIDE * SIDE) factors(
    const NUMBER* matrices, NUMBER* factors, NUMBER* inverses, int m, int stride, int row) {
    __shared__ Step steps[2];  // one is written while others still read the other
    const int y = threadIdx.x / SIDE, x = threadIdx.x % SIDE;
    const NUMBER* matrix = matrices + static_cast<i64>(blockIdx.x) * stride;
    const i64 start = static_cast<i64>(blockIdx.x) * m * m;
    Tile tile;
#pragma unroll
    for (int a = 0; a < PARTS; ++a)
#pragma unroll
        for (int b = 0; b < PARTS; ++b) {
            const int i = y + SIDE * a, k = x + SIDE * b;
            tile.matrix[a][b] = i < m && k <= i ? matrix[static_cast<i64>(i) * row + k] : 0;
            tile.inverse[a][b] = i == k;
        }
#pragma unroll
    for (int at = 0; at < PARTS; ++at)
        for (int j = SIDE * at; j < min(m, SIDE * (at + 1)); ++j) eliminate(tile, steps[j % 2], j, at, y, x);
#pragma unroll
    for (int a = 0; a < PARTS; ++a)
#pragma unroll
        for (int b = 0; b < PARTS; ++b) {
            const int i = y + SIDE * a, k = x + SIDE * b;
            if (i < m && k < m) {
                factors[start + i * m + k] = k > i ? 0 : tile.matrix[a][b];
                inverses[start + i * m + k] = tile.inverse[a][b];
            }
        }
}

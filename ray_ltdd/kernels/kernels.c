/* Convolutions, instance and batch norms for float32 maps in channels-last order, on any CPU the compiler vectorises for; on one with AVX512-BF16 the
 * products of convolutions may be of bfloat16 values, added up in float32.
 *
 * 3x3 convolutions of stride 1 and padding 1 use Winograd's minimal filtering F(4x4, 3x3) (Lavin and Gray, 2016): 36 multiplications for 16 outputs
 * of a channel pair instead of 144. Its adjoints give both gradients. Images of up to 4 channels are convolved directly: there the
 * transforms would cost more than they save.
 *
 * Every sum is added up in an order that does not depend on the number of threads, so neither do the results.
 *
 * Shapes: N images, H x W pixels, I input and O output channels, T tiles of 4x4 outputs. O, and I where Winograd's way is taken, are multiples of 16.
 */

#include <stdlib.h>
#include <string.h>

#if defined(__AVX512BF16__) && defined(__AVX512BW__)
#include <immintrin.h>
#define BFLOAT16 1
#else
#define BFLOAT16 0
#endif

/* A product holds WIDE_ROWS rows of WIDE vectors in registers, or where the output channels are no multiple of that many, NARROW_ROWS of NARROW. */
#if defined(__AVX512F__)
enum { LANES = 16, WIDE = 2, WIDE_ROWS = 8, NARROW = 1, NARROW_ROWS = 12 };
#elif defined(__AVX__)
enum { LANES = 8, WIDE = 2, WIDE_ROWS = 6, NARROW = 2, NARROW_ROWS = 6 };
#else
enum { LANES = 4, WIDE = 4, WIDE_ROWS = 4, NARROW = 4, NARROW_ROWS = 4 };
#endif
enum {
    MOST_ROWS = WIDE_ROWS > NARROW_ROWS ? WIDE_ROWS : NARROW_ROWS,
    FREQUENCIES = 36,
    BLOCK = 24,       /* tiles a thread transforms at a time: their transforms fit a second-level cache */
    SLAB = 128,       /* tiles whose transforms all threads share while they add up a gradient of the weights */
    PIXELS = 48,      /* pixels a thread convolves directly at a time */
    PIXEL_SLAB = 1024 /* the same for the gradient of the weights */
};
typedef float vec __attribute__((vector_size(LANES * sizeof(float)), aligned(4), may_alias));
typedef int mask __attribute__((vector_size(LANES * sizeof(float))));
#define LOAD(p) (*(const vec *)(p))
#define STORE(p, v) (*(vec *)(p) = (v))
#define INLINE static inline __attribute__((always_inline))

typedef struct {
    long out, in, row, column;
} Strides;

/* ---- memory that a thread keeps between calls: asking the system for megabytes at every step costs page faults ---- */

enum { N_BUFFERS = 6 };

static float *scratch(int which, size_t floats) {
    static __thread float *buffer[N_BUFFERS];
    static __thread size_t size[N_BUFFERS];
    if (size[which] < floats) {
        free(buffer[which]);
        floats = (floats + 1023) / 1024 * 1024;
        buffer[which] = aligned_alloc(64, floats * sizeof(float));
        if (!buffer[which]) abort();
        memset(buffer[which], 0, floats * sizeof(float));
        size[which] = floats;
    }
    return buffer[which];
}

/* ---- small matrix products ----
 *
 * Both sides are rows of words. In float32 a word is a value; where `half` is set, known when it is compiled, it holds the bfloat16 values of two
 * neighbours of the sum, which the processor multiplies and adds up in float32 at once: twice as many products in the same time.
 */

INLINE vec multiply_add(int half, const float *word, vec right, vec sum) {
#if BFLOAT16
    if (half) return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_ps(*word), (__m512bh)right);
#endif
    return sum + *word * right;
}

/* Words of two neighbours, `even` in the lower halves. */
INLINE vec pair(vec even, vec odd) {
#if BFLOAT16
    const __m512i zip =
        _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return (vec)_mm512_permutexvar_epi16(zip, (__m512i)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even));
#else
    return even;
#endif
}

/* Store LANES values, the c-th of a row and those after it, as words. */
INLINE void store_row(int half, float *row, long c, vec value) {
#if BFLOAT16
    if (half) {
        _mm256_storeu_si256((__m256i *)((short *)row + c), (__m256i)_mm512_cvtneps_pbh((__m512)value));
        return;
    }
#endif
    STORE(row + c, value);
}

/* out[r][0..panel) = bias + sum_k a[r][k] b[k][0..panel), a panel of `vectors`, for `rows` rows; all three are known when it is compiled. */
INLINE void product_of(int half, int vectors, int rows, long words, const float *a, long a_row, const float *b, float *out, long out_row,
                       const float *bias) {
    vec sum[MOST_ROWS][WIDE];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) sum[r][v] = bias ? LOAD(bias + v * LANES) : (vec){0};
    for (long k = 0; k < words; k++) {
        vec right[WIDE];
        for (int v = 0; v < vectors; v++) right[v] = LOAD(b + (k * vectors + v) * LANES);
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < vectors; v++) sum[r][v] = multiply_add(half, a + r * a_row + k, right[v], sum[r][v]);
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) STORE(out + r * out_row + v * LANES, sum[r][v]);
}

/* Call a function whose first arguments are known when it is compiled: bfloat16 products, vectors of a panel, most rows at a time. */
#define DISPATCH(function, half, vectors, ...)             \
    do {                                                   \
        if (BFLOAT16 && half && vectors == WIDE)           \
            function(1, WIDE, WIDE_ROWS, __VA_ARGS__);     \
        else if (BFLOAT16 && half)                         \
            function(1, NARROW, NARROW_ROWS, __VA_ARGS__); \
        else if (vectors == WIDE)                          \
            function(0, WIDE, WIDE_ROWS, __VA_ARGS__);     \
        else                                               \
            function(0, NARROW, NARROW_ROWS, __VA_ARGS__); \
    } while (0)

/* The same for any number of rows. */
INLINE void product_by(int half, int vectors, int most, long rows, long words, const float *a, long a_row, const float *b, float *out, long out_row,
                       const float *bias) {
    long r = 0;
    for (; r + most <= rows; r += most) product_of(half, vectors, most, words, a + r * a_row, a_row, b, out + r * out_row, out_row, bias);
    for (; r + 4 <= rows; r += 4) product_of(half, vectors, 4, words, a + r * a_row, a_row, b, out + r * out_row, out_row, bias);
    for (; r < rows; r++) product_of(half, vectors, 1, words, a + r * a_row, a_row, b, out + r * out_row, out_row, bias);
}

static void product(int half, int vectors, long rows, long words, const float *a, long a_row, const float *b, float *out, long out_row,
                    const float *bias) {
    DISPATCH(product_by, half, vectors, rows, words, a, a_row, b, out, out_row, bias);
}

/* out[i][0..panel) += sum_t a[t][i] b[t][0..panel) for `rows` values of i; known as above. */
INLINE void add_outer_of(int half, int vectors, int rows, long words, const float *a, long a_row, const float *b, long b_row, float *out,
                         long out_row) {
    vec sum[MOST_ROWS][WIDE];
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < vectors; v++) sum[i][v] = LOAD(out + i * out_row + v * LANES);
    for (long t = 0; t < words; t++) {
        vec right[WIDE];
        for (int v = 0; v < vectors; v++) right[v] = LOAD(b + t * b_row + v * LANES);
        for (int i = 0; i < rows; i++)
            for (int v = 0; v < vectors; v++) sum[i][v] = multiply_add(half, a + t * a_row + i, right[v], sum[i][v]);
    }
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < vectors; v++) STORE(out + i * out_row + v * LANES, sum[i][v]);
}

/* The same for any number of values of i. */
INLINE void add_outer_by(int half, int vectors, int most, long rows, long words, const float *a, long a_row, const float *b, long b_row, float *out,
                         long out_row) {
    long i = 0;
    for (; i + most <= rows; i += most) add_outer_of(half, vectors, most, words, a + i, a_row, b, b_row, out + i * out_row, out_row);
    for (; i + 2 <= rows; i += 2) add_outer_of(half, vectors, 2, words, a + i, a_row, b, b_row, out + i * out_row, out_row);
    for (; i < rows; i++) add_outer_of(half, vectors, 1, words, a + i, a_row, b, b_row, out + i * out_row, out_row);
}

static void add_outer(int half, int vectors, long rows, long words, const float *a, long a_row, const float *b, long b_row, float *out,
                      long out_row) {
    DISPATCH(add_outer_by, half, vectors, rows, words, a, a_row, b, b_row, out, out_row);
}

/* Vectors of a panel of `channels`. */
static int vectors_for(long channels) {
    return channels % (WIDE * LANES) == 0 ? WIDE : NARROW;
}

/* ---- Winograd's transforms, one dimension each: B^T d, A^T m, A g, G w, G^T u ----
 *
 * They evaluate polynomials at 0, infinity and two pairs of points, +-NEAR and +-FAR. The usual 1 and 2 need fewer multiplications, but their
 * powers lie further apart: products of bfloat16 values err by 2.6 % of the result's norm with them, with these by 1.2 % (normal values).
 */

#define NEAR 0.625f
#define FAR 1.5f
#define NEAR2 (NEAR * NEAR)
#define FAR2 (FAR * FAR)
#define AT_ZERO (1 / (NEAR2 * FAR2))
#define AT_NEAR (1 / (2 * NEAR2 * (NEAR2 - FAR2)))
#define AT_FAR (1 / (2 * FAR2 * (FAR2 - NEAR2)))

/* A polynomial's values at +-NEAR and +-FAR from its even and odd parts there. */
INLINE void at_pairs(vec even, vec odd, vec far_even, vec far_odd, vec *r, int r_step) {
    r[r_step] = even + odd;
    r[2 * r_step] = even - odd;
    r[3 * r_step] = far_even + far_odd;
    r[4 * r_step] = far_even - far_odd;
}

INLINE void input_1d(const vec *d, int step, vec *r, int r_step) {
    vec d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step], d5 = d[5 * step];
    vec even = d4 - FAR2 * d2, odd = NEAR * (d3 - FAR2 * d1), far_even = d4 - NEAR2 * d2, far_odd = FAR * (d3 - NEAR2 * d1);
    r[0] = NEAR2 * FAR2 * d0 - (NEAR2 + FAR2) * d2 + d4;
    at_pairs(even, odd, far_even, far_odd, r, r_step);
    r[5 * r_step] = NEAR2 * FAR2 * d1 - (NEAR2 + FAR2) * d3 + d5;
}

INLINE void output_1d(const vec *m, int step, vec *r, int r_step) {
    vec m0 = m[0], sum = m[step] + m[2 * step], difference = NEAR * (m[step] - m[2 * step]);
    vec far_sum = m[3 * step] + m[4 * step], far_difference = FAR * (m[3 * step] - m[4 * step]);
    r[0] = m0 + sum + far_sum;
    r[r_step] = difference + far_difference;
    r[2 * r_step] = NEAR2 * sum + FAR2 * far_sum;
    r[3 * r_step] = NEAR2 * difference + FAR2 * far_difference + m[5 * step];
}

INLINE void output_adjoint_1d(const vec *g, int step, vec *r, int r_step) {
    vec g0 = g[0], g1 = g[step], g2 = g[2 * step], g3 = g[3 * step];
    vec even = g0 + NEAR2 * g2, odd = NEAR * (g1 + NEAR2 * g3), far_even = g0 + FAR2 * g2, far_odd = FAR * (g1 + FAR2 * g3);
    r[0] = g0;
    at_pairs(even, odd, far_even, far_odd, r, r_step);
    r[5 * r_step] = g3;
}

INLINE void weight_1d(const vec *w, int step, vec *r, int r_step) {
    vec w0 = w[0], w1 = w[step], w2 = w[2 * step];
    vec even = AT_NEAR * (w0 + NEAR2 * w2), odd = AT_NEAR * NEAR * w1, far_even = AT_FAR * (w0 + FAR2 * w2), far_odd = AT_FAR * FAR * w1;
    r[0] = AT_ZERO * w0;
    at_pairs(even, odd, far_even, far_odd, r, r_step);
    r[5 * r_step] = w2;
}

INLINE void weight_adjoint_1d(const vec *u, int step, vec *r, int r_step) {
    vec sum = AT_NEAR * (u[step] + u[2 * step]), far_sum = AT_FAR * (u[3 * step] + u[4 * step]);
    r[0] = AT_ZERO * u[0] + sum + far_sum;
    r[r_step] = AT_NEAR * NEAR * (u[step] - u[2 * step]) + AT_FAR * FAR * (u[3 * step] - u[4 * step]);
    r[2 * r_step] = NEAR2 * sum + FAR2 * far_sum + u[5 * step];
}

/* One vector of output channels of one input channel's transformed filters, which begin at `from`; `turned` for the gradient of the input: filters
 * rotated by half a turn (in and out are swapped by the caller's strides). */
INLINE void transform_filter(const float *from, Strides at, int turned, vec *whole) {
    vec filter[9], half[18];
    for (int r = 0; r < 3; r++)
        for (int s = 0; s < 3; s++)
            for (int lane = 0; lane < LANES; lane++)
                filter[3 * r + s][lane] = from[lane * at.out + (turned ? 2 - r : r) * at.row + (turned ? 2 - s : s) * at.column];
    for (int s = 0; s < 3; s++) weight_1d(filter + s, 3, half + s, 3);
    for (int r = 0; r < 6; r++) weight_1d(half + 3 * r, 1, whole + 6 * r, 1);
}

/* u[panel of O][frequency][words of I][panel] of weights. */
static void transform_weights(int half, int vectors, const float *w, Strides at, long n_in, long n_out, int turned, float *u, int threads) {
    long each = half ? 2 : 1, words = n_in / each;
#pragma omp parallel for num_threads(threads) schedule(static) collapse(2)
    for (long o = 0; o < n_out; o += vectors * LANES)
        for (long k = 0; k < words; k++)
            for (int v = 0; v < vectors; v++) {
                const float *from = w + (o + v * LANES) * at.out + each * k * at.in;
                vec even[FREQUENCIES], odd[FREQUENCIES];
                transform_filter(from, at, turned, even);
                if (half) transform_filter(from + at.in, at, turned, odd);
                for (int f = 0; f < FREQUENCIES; f++)
                    STORE(u + o * FREQUENCIES * words + ((f * words + k) * vectors + v) * LANES, half ? pair(even[f], odd[f]) : even[f]);
            }
}

typedef struct {
    long n, y, x;
} Tile;

INLINE Tile tile_at(long t, long rows, long columns) {
    return (Tile){t / (rows * columns), t / columns % rows * 4, t % columns * 4};
}

/* Where the pixels of a square of `size` from (y, x) lie; outside the map it is a pixel of zeros. */
INLINE void gather(const float *map, long n, long y, long x, int size, long height, long width, long channels, const float *zeros, const float **at) {
    for (int i = 0; i < size; i++)
        for (int j = 0; j < size; j++) {
            int inside = y + i >= 0 && y + i < height && x + j >= 0 && x + j < width;
            at[i * size + j] = inside ? map + ((n * height + y + i) * width + x + j) * channels : zeros;
        }
}

/* The transform of LANES channels from c on of one tile's input. */
INLINE void transform_input(const float **at, long c, vec *d) {
    vec half[FREQUENCIES];
    for (int f = 0; f < FREQUENCIES; f++) d[f] = LOAD(at[f] + c);
    for (int j = 0; j < 6; j++) input_1d(d + j, 6, half + j, 6);
    for (int i = 0; i < 6; i++) input_1d(half + 6 * i, 1, d + 6 * i, 1);
}

/* The transform of LANES channels from c on of one tile's gradient. */
INLINE void transform_gradient(const float **at, long c, vec *e) {
    vec g[16], half[24];
    for (int p = 0; p < 16; p++) g[p] = LOAD(at[p] + c);
    for (int j = 0; j < 4; j++) output_adjoint_1d(g + j, 4, half + j, 4);
    for (int i = 0; i < 6; i++) output_adjoint_1d(half + 4 * i, 1, e + 6 * i, 1);
}

int multiplies_bfloat16(void) {
    return BFLOAT16;
}

/* y[N][H][W][O] = 3x3 convolution of x[N][H][W][I] with w, padding 1, plus bias[O] if there is one. */
void winograd(int half, const float *x, const float *w, Strides at, int turned, const float *bias, float *y, long n, long height, long width,
              long n_in, long n_out, int threads) {
    half &= BFLOAT16;
    long rows = (height + 3) / 4, columns = (width + 3) / 4, tiles = n * rows * columns, words = half ? n_in / 2 : n_in;
    int vectors = vectors_for(n_out), panel = vectors * LANES;
    float *u = scratch(0, FREQUENCIES * words * n_out);
    transform_weights(half, vectors, w, at, n_in, n_out, turned, u, threads);
#pragma omp parallel num_threads(threads)
    {
        float *v = scratch(1, FREQUENCIES * BLOCK * words + n_in), *m = scratch(2, FREQUENCIES * BLOCK * panel);
        float *zeros = v + FREQUENCIES * BLOCK * words;
        memset(zeros, 0, n_in * sizeof(float));
#pragma omp for schedule(static)
        for (long first = 0; first < tiles; first += BLOCK) {
            long count = tiles - first < BLOCK ? tiles - first : BLOCK;
            for (long t = 0; t < count; t++) {
                Tile tile = tile_at(first + t, rows, columns);
                const float *from[FREQUENCIES];
                gather(x, tile.n, tile.y - 1, tile.x - 1, 6, height, width, n_in, zeros, from);
                for (long c = 0; c < n_in; c += LANES) {
                    vec d[FREQUENCIES];
                    transform_input(from, c, d);
                    for (int f = 0; f < FREQUENCIES; f++) store_row(half, v + (f * BLOCK + t) * words, c, d[f]);
                }
            }
            /* panel by panel, so that the products stay in a near cache and the weights are one long stream */
            for (long o = 0; o < n_out; o += panel) {
                for (int f = 0; f < FREQUENCIES; f++)
                    product(half, vectors, count, words, v + f * BLOCK * words, words, u + (o * FREQUENCIES + f * panel) * words,
                            m + f * BLOCK * panel, panel, NULL);
                for (long t = 0; t < count; t++) {
                    Tile tile = tile_at(first + t, rows, columns);
                    for (long c = 0; c < panel; c += LANES) {
                        vec all[FREQUENCIES], some[24], out[16];
                        for (int f = 0; f < FREQUENCIES; f++) all[f] = LOAD(m + (f * BLOCK + t) * panel + c);
                        for (int j = 0; j < 6; j++) output_1d(all + j, 6, some + j, 6);
                        for (int i = 0; i < 4; i++) output_1d(some + 6 * i, 1, out + 4 * i, 1);
                        vec shift = bias ? LOAD(bias + o + c) : (vec){0};
                        for (int i = 0; i < 4 && tile.y + i < height; i++)
                            for (int j = 0; j < 4 && tile.x + j < width; j++)
                                STORE(y + ((tile.n * height + tile.y + i) * width + tile.x + j) * n_out + o + c, out[4 * i + j] + shift);
                    }
                }
            }
        }
    }
}

/* dw = gradient of the weights from x[N][H][W][I] and dy[N][H][W][O]. */
void winograd_weights(int half, const float *x, const float *dy, float *dw, Strides at, long n, long height, long width, long n_in, long n_out,
                      int threads) {
    half &= BFLOAT16;
    long rows = (height + 3) / 4, columns = (width + 3) / 4, tiles = n * rows * columns, each = half ? 2 : 1;
    int vectors = vectors_for(n_out), panel = vectors * LANES;
    long most = n_in > n_out ? n_in : n_out;
    float *du = scratch(0, FREQUENCIES * n_in * n_out + most);
    /* rows a power of two apart would share a few lines of the cache */
    long v_row = n_in + 16, slab = SLAB / each;
    float *v = scratch(1, FREQUENCIES * slab * v_row), *m = scratch(2, FREQUENCIES * slab * n_out);
    float *zeros = du + FREQUENCIES * n_in * n_out;
    memset(du, 0, (FREQUENCIES * n_in * n_out + most) * sizeof(float));
#pragma omp parallel num_threads(threads)
    for (long first = 0; first < tiles; first += SLAB) {
        long words = ((tiles - first < SLAB ? tiles - first : SLAB) + each - 1) / each;
#pragma omp for schedule(static)
        for (long k = 0; k < words; k++) {
            const float *inputs[2][FREQUENCIES], *gradients[2][16];
            for (int e = 0; e < each; e++) {
                Tile tile = tile_at(first + each * k + e, rows, columns);
                /* the tile after an odd number of them lies outside every map */
                long beyond = tile.n < n ? 0 : height + 8;
                gather(x, tile.n, tile.y - 1 + beyond, tile.x - 1, 6, height, width, n_in, zeros, inputs[e]);
                gather(dy, tile.n, tile.y + beyond, tile.x, 4, height, width, n_out, zeros, gradients[e]);
            }
            for (long c = 0; c < n_in; c += LANES) {
                vec even[FREQUENCIES], odd[FREQUENCIES];
                transform_input(inputs[0], c, even);
                if (half) transform_input(inputs[1], c, odd);
                for (int f = 0; f < FREQUENCIES; f++) STORE(v + (f * slab + k) * v_row + c, half ? pair(even[f], odd[f]) : even[f]);
            }
            for (long c = 0; c < n_out; c += LANES) {
                vec even[FREQUENCIES], odd[FREQUENCIES];
                transform_gradient(gradients[0], c, even);
                if (half) transform_gradient(gradients[1], c, odd);
                float *to = m + c / panel * slab * panel + k * panel + c % panel;
                for (int f = 0; f < FREQUENCIES; f++) STORE(to + f * slab * n_out, half ? pair(even[f], odd[f]) : even[f]);
            }
        }
#pragma omp for schedule(static) collapse(2)
        for (int f = 0; f < FREQUENCIES; f++)
            for (long o = 0; o < n_out; o += panel) {
                const float *right = m + f * slab * n_out + o * slab;
                add_outer(half, vectors, n_in, words, v + f * slab * v_row, v_row, right, panel, du + f * n_in * n_out + o, n_out);
            }
    }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long i = 0; i < n_in; i++)
        for (long o = 0; o < n_out; o += LANES) {
            vec all[FREQUENCIES], some[18], filter[9];
            for (int f = 0; f < FREQUENCIES; f++) all[f] = LOAD(du + (f * n_in + i) * n_out + o);
            for (int j = 0; j < 6; j++) weight_adjoint_1d(all + j, 6, some + j, 6);
            for (int r = 0; r < 3; r++) weight_adjoint_1d(some + 6 * r, 1, filter + 3 * r, 1);
            for (int r = 0; r < 3; r++)
                for (int s = 0; s < 3; s++)
                    for (int lane = 0; lane < LANES; lane++)
                        dw[(o + lane) * at.out + i * at.in + r * at.row + s * at.column] = filter[3 * r + s][lane];
        }
}

/* ---- direct convolution of images of few channels ---- */

/* The 9 I inputs of each of `count` output pixels from `first` on, in the order row, column, channel, then zeros up to `row` values. */
INLINE void gather_patches(const float *x, long first, long count, long height, long width, long n_in, float *out, long row) {
    long n = first / (height * width), y = first / width % height, c = first % width;
    for (long p = 0; p < count; p++) {
        const float *centre = x + ((n * height + y) * width + c) * n_in;
        if (y > 0 && y + 1 < height && c > 0 && c + 1 < width) {
            for (int r = -1; r <= 1; r++)
                for (long k = -n_in; k < 2 * n_in; k++) *out++ = centre[r * width * n_in + k];
        } else {
            for (int r = -1; r <= 1; r++)
                for (int s = -1; s <= 1; s++) {
                    int inside = y + r >= 0 && y + r < height && c + s >= 0 && c + s < width;
                    for (long i = 0; i < n_in; i++) *out++ = inside ? centre[(r * width + s) * n_in + i] : 0;
                }
        }
        for (long k = 9 * n_in; k < row; k++) *out++ = 0;
        if (++c == width) {
            c = 0;
            if (++y == height) {
                y = 0;
                n++;
            }
        }
    }
}

/* Where the weight lies that takes the k-th of a patch's 9 I inputs to output channel o. */
INLINE long weight_at(Strides at, long n_in, long o, long k) {
    return o * at.out + k % n_in * at.in + k / n_in / 3 * at.row + k / n_in % 3 * at.column;
}

/* The weights as panels of output channels, [panel][words of 9 I][channels]; a last word's missing half is zero. */
static float *pack(int half, int vectors, const float *w, Strides at, long n_in, long n_out) {
    long depth = 9 * n_in, each = half ? 2 : 1, words = (depth + each - 1) / each, panel = vectors * LANES;
    float *packed = scratch(0, words * n_out);
    for (long o = 0; o < n_out; o += LANES)
        for (long k = 0; k < words; k++) {
            float part[2][LANES] = {{0}};
            for (long q = each * k; q < each * (k + 1) && q < depth; q++)
                for (int lane = 0; lane < LANES; lane++) part[q - each * k][lane] = w[weight_at(at, n_in, o + lane, q)];
            STORE(packed + (o / panel * words + k) * panel + o % panel, half ? pair(LOAD(part[0]), LOAD(part[1])) : LOAD(part[0]));
        }
    return packed;
}

/* The 9 I inputs, filled up to whole vectors. */
static long padded_depth(long n_in) {
    return (9 * n_in + NARROW * LANES - 1) / (NARROW * LANES) * (NARROW * LANES);
}

/* The weights as panels of the 9 I inputs, filled up with zeros, [panel][O][inputs]. */
static float *pack_turned(const float *w, Strides at, long n_in, long n_out) {
    long depth = 9 * n_in, padded = padded_depth(n_in), panel = vectors_for(padded) * LANES;
    float *packed = scratch(3, padded * n_out);
    memset(packed, 0, padded * n_out * sizeof(float));
    for (long k = 0; k < depth; k++)
        for (long o = 0; o < n_out; o++) packed[(k / panel * n_out + o) * panel + k % panel] = w[weight_at(at, n_in, o, k)];
    return packed;
}

/* The gradient of one image from that of its convolved map. */
static void image_gradient(const float *dy, const float *turned, float *dx, long height, long width, long n_in, long n_out) {
    long padded = padded_depth(n_in);
    int vectors = vectors_for(padded), panel = vectors * LANES;
    float *patches = scratch(5, PIXELS * padded);
    memset(dx, 0, height * width * n_in * sizeof(float));
    for (long first = 0; first < height * width; first += PIXELS) {
        long count = height * width - first < PIXELS ? height * width - first : PIXELS;
        for (long k = 0; k < padded; k += panel)
            product(0, vectors, count, n_out, dy + first * n_out, n_out, turned + k * n_out, patches + k, padded, NULL);
        for (long p = 0; p < count; p++) {
            long y = (first + p) / width, c = (first + p) % width;
            for (int r = -1; r <= 1; r++)
                for (int s = -1; s <= 1; s++)
                    if (y + r >= 0 && y + r < height && c + s >= 0 && c + s < width)
                        for (long i = 0; i < n_in; i++)
                            dx[((y + r) * width + c + s) * n_in + i] += patches[p * padded + (3 * (r + 1) + s + 1) * n_in + i];
        }
    }
}

void direct(const float *x, const float *w, Strides at, const float *bias, float *y, long n, long height, long width, long n_in, long n_out,
            int threads) {
    long depth = 9 * n_in, pixels = n * height * width;
    int vectors = vectors_for(n_out), panel = vectors * LANES;
    float *packed = pack(0, vectors, w, at, n_in, n_out);
#pragma omp parallel num_threads(threads)
    {
        float *patches = scratch(1, PIXELS * depth);
#pragma omp for schedule(static)
        for (long first = 0; first < pixels; first += PIXELS) {
            long count = pixels - first < PIXELS ? pixels - first : PIXELS;
            gather_patches(x, first, count, height, width, n_in, patches, depth);
            for (long o = 0; o < n_out; o += panel)
                product(0, vectors, count, depth, patches, depth, packed + o * depth, y + first * n_out + o, n_out, bias ? bias + o : NULL);
        }
    }
}

void direct_weights(const float *x, const float *dy, float *dw, Strides at, long n, long height, long width, long n_in, long n_out, int threads) {
    long depth = 9 * n_in, pixels = n * height * width;
    int vectors = vectors_for(n_out), panel = vectors * LANES;
    float *sum = scratch(0, depth * n_out), *patches = scratch(1, PIXEL_SLAB * depth);
    memset(sum, 0, depth * n_out * sizeof(float));
#pragma omp parallel num_threads(threads)
    for (long first = 0; first < pixels; first += PIXEL_SLAB) {
        long count = pixels - first < PIXEL_SLAB ? pixels - first : PIXEL_SLAB;
#pragma omp for schedule(static)
        for (long p = 0; p < count; p += PIXELS)
            gather_patches(x, first + p, count - p < PIXELS ? count - p : PIXELS, height, width, n_in, patches + p * depth, depth);
#pragma omp for schedule(static)
        for (long o = 0; o < n_out; o += panel)
            for (long p = 0; p < count; p += PIXELS)
                add_outer(0, vectors, depth, count - p < PIXELS ? count - p : PIXELS, patches + p * depth, depth, dy + (first + p) * n_out + o, n_out,
                          sum + o, n_out);
    }
    for (long o = 0; o < n_out; o++)
        for (long k = 0; k < depth; k++) dw[weight_at(at, n_in, o, k)] = sum[k * n_out + o];
}

void direct_input(const float *dy, const float *w, Strides at, float *dx, long n, long height, long width, long n_in, long n_out, int threads) {
    float *turned = pack_turned(w, at, n_in, n_out);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long image = 0; image < n; image++)
        image_gradient(dy + image * height * width * n_out, turned, dx + image * height * width * n_in, height, width, n_in, n_out);
}

/* ---- mean and variance of every channel of an image ---- */

enum { SUMS = 4 /* kept apart, so that no addition waits for the one before */, MOST_VECTORS = 4 /* summed at once: neighbours in memory */ };

INLINE int vectors_at_once(long channels) {
    return channels % (4 * LANES) == 0 ? 4 : channels % (2 * LANES) == 0 ? 2 : 1;
}

/* mean[c] = (sum over pixels of map - middle, squared or not) / area, for `vectors` times LANES channels; `middle` NULL is zero. */
INLINE void mean_of(int vectors, const float *map, const float *middle, int squared, float *mean, long area, long channels) {
    vec sum[MOST_VECTORS][SUMS] = {{{0}}};
    for (long p = 0; p < area; p += SUMS)
        for (int q = 0; q < SUMS; q++) {
            if (p + q >= area) break;
            for (int v = 0; v < vectors; v++) {
                vec off = LOAD(map + (p + q) * channels + v * LANES) - (middle ? LOAD(middle + v * LANES) : (vec){0});
                sum[v][q] += squared ? (vec)(off * off) : off;
            }
        }
    for (int v = 0; v < vectors; v++) STORE(mean + v * LANES, ((sum[v][0] + sum[v][1]) + (sum[v][2] + sum[v][3])) / (float)area);
}

static void means_of(const float *map, const float *middle, int squared, float *mean, long area, long channels) {
    int vectors = vectors_at_once(channels);
    for (long c = 0; c < channels; c += vectors * LANES) {
        const float *middle_c = middle ? middle + c : NULL;
        if (vectors == 4) mean_of(4, map + c, middle_c, squared, mean + c, area, channels);
        else if (vectors == 2) mean_of(2, map + c, middle_c, squared, mean + c, area, channels);
        else mean_of(1, map + c, middle_c, squared, mean + c, area, channels);
    }
}

static void moments_of(const float *map, float *mean, float *var, long area, long channels) {
    means_of(map, NULL, 0, mean, area, channels);
    means_of(map, mean, 1, var, area, channels);
}

void image_moments(const float *x, float *mean, float *var, long n, long area, long channels, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long image = 0; image < n; image++) moments_of(x + image * area * channels, mean + image * channels, var + image * channels, area, channels);
}

/* dx = (dmean + 2 (x - mean) dvar) / area */
void image_moments_backward(const float *x, const float *mean, const float *dmean, const float *dvar, float *dx, long n, long area, long channels,
                            int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long image = 0; image < n; image++)
        for (long p = 0; p < area; p++)
            for (long c = 0; c < channels; c += LANES) {
                long at = (image * area + p) * channels + c, of_image = image * channels + c;
                vec off = LOAD(x + at) - LOAD(mean + of_image);
                STORE(dx + at, (LOAD(dmean + of_image) + 2 * off * LOAD(dvar + of_image)) / (float)area);
            }
}

/* `value` where `z` is above zero or no number, else zero: a network that has become NaN must not look healthy. */
INLINE vec where_positive(vec z, vec value) {
    return (vec)(~(mask)(z <= (vec){0}) & (mask)value);
}

/* ---- batch norm of training, with a ReLU or none: forward after image_moments the map is read once more, backward twice ----
 *
 * z = x * factor + offset, with a factor and an offset a channel.
 */

INLINE vec rectified(int relu, vec z, vec value) {
    return relu ? where_positive(z, value) : value;
}

void scale_shift(int relu, const float *x, const float *factor, const float *offset, float *y, long pixels, long channels, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long p = 0; p < pixels; p++)
        for (long c = 0; c < channels; c += LANES) {
            vec z = LOAD(x + p * channels + c) * LOAD(factor + c) + LOAD(offset + c);
            STORE(y + p * channels + c, rectified(relu, z, z));
        }
}

typedef struct {
    const float *mean, *factor, *offset;
} Line;

/* Sums over an image's pixels of its gradient g = dy, where z > 0 if there is a ReLU, and of g * (x - mean), for `vectors` times LANES channels. */
INLINE void image_sums(int vectors, int relu, const float *x, Line at, const float *dy, float *plain, float *centred, long area, long channels) {
    vec sum[MOST_VECTORS][2] = {{{0}}}, product[MOST_VECTORS][2] = {{{0}}};
    for (long p = 0; p < area; p += 2)
        for (int q = 0; q < 2; q++) {
            if (p + q >= area) break;
            for (int v = 0; v < vectors; v++) {
                long c = v * LANES, pixel = (p + q) * channels + c;
                vec value = LOAD(x + pixel), g = rectified(relu, value * LOAD(at.factor + c) + LOAD(at.offset + c), LOAD(dy + pixel));
                sum[v][q] += g;
                product[v][q] += g * (value - LOAD(at.mean + c));
            }
        }
    for (int v = 0; v < vectors; v++) {
        STORE(plain + v * LANES, sum[v][0] + sum[v][1]);
        STORE(centred + v * LANES, product[v][0] + product[v][1]);
    }
}

/* The sums of every image, [N][C] each. */
void scale_shift_sums(int relu, const float *x, const float *mean, const float *factor, const float *offset, const float *dy, float *plain,
                      float *centred, long n, long area, long channels, int threads) {
    int vectors = vectors_at_once(channels);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long image = 0; image < n; image++)
        for (long c = 0; c < channels; c += vectors * LANES) {
            long map = image * area * channels + c, sums = image * channels + c;
            Line at = {mean + c, factor + c, offset + c};
            if (vectors == 4) image_sums(4, relu, x + map, at, dy + map, plain + sums, centred + sums, area, channels);
            else if (vectors == 2) image_sums(2, relu, x + map, at, dy + map, plain + sums, centred + sums, area, channels);
            else image_sums(1, relu, x + map, at, dy + map, plain + sums, centred + sums, area, channels);
        }
}

/* dx = g * factor - (x - mean) * slope - base */
void scale_shift_backward(int relu, const float *x, const float *mean, const float *factor, const float *offset, const float *dy, const float *slope,
                          const float *base, float *dx, long pixels, long channels, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long p = 0; p < pixels; p++)
        for (long c = 0; c < channels; c += LANES) {
            long at = p * channels + c;
            vec value = LOAD(x + at), f = LOAD(factor + c), g = rectified(relu, value * f + LOAD(offset + c), LOAD(dy + at));
            STORE(dx + at, g * f - (value - LOAD(mean + c)) * LOAD(slope + c) - LOAD(base + c));
        }
}

/* ---- instance norm, ReLU and 2x2 average pooling in one: the map is read from memory once ---- */

typedef struct {
    const float *scale, *shift;
    float epsilon;
} Norm;

static void normalise(const float *map, Norm norm, float *y, float *m, float *s, long height, long width, long channels) {
    moments_of(map, m, s, height * width, channels);
    for (long c = 0; c < channels; c++) s[c] = 1 / __builtin_sqrtf(s[c] + norm.epsilon);
    for (long i = 0; i < height / 2; i++)
        for (long j = 0; j < width / 2; j++) {
            const float *from = map + (2 * i * width + 2 * j) * channels;
            float *to = y + (i * (width / 2) + j) * channels;
            for (long c = 0; c < channels; c += LANES) {
                vec factor = LOAD(s + c) * LOAD(norm.scale + c), offset = LOAD(norm.shift + c) - LOAD(m + c) * factor, sum = {0};
                for (int q = 0; q < 4; q++) {
                    vec z = LOAD(from + ((q / 2) * width + q % 2) * channels + c) * factor + offset;
                    sum += where_positive(z, z);
                }
                STORE(to + c, sum * 0.25f);
            }
        }
}

/* dx may be the map itself. ds and db are the gradients of scale and shift. */
static void normalise_backward(const float *map, Norm norm, const float *m, const float *s, const float *dy, float *dx, float *ds, float *db,
                               long height, long width, long channels) {
    long area = height * width;
    memset(ds, 0, channels * sizeof(float));
    memset(db, 0, channels * sizeof(float));
    for (int pass = 0; pass < 2; pass++) {
        float share = pass ? 1.f / area : 1;
        for (long i = 0; i < height / 2 + (pass && height % 2); i++)
            for (long j = 0; j < width / 2 + (pass && width % 2); j++)
                for (long c = 0; c < channels; c += LANES) {
                    int pooled = i < height / 2 && j < width / 2;
                    vec factor = LOAD(s + c) * LOAD(norm.scale + c), offset = LOAD(norm.shift + c) - LOAD(m + c) * factor, g = {0};
                    if (pooled) g = LOAD(dy + (i * (width / 2) + j) * channels + c) * 0.25f;
                    vec of_scale = LOAD(ds + c) * share, of_shift = LOAD(db + c) * share;
                    for (int q = 0; q < 4; q++) {
                        long row = 2 * i + q / 2, column = 2 * j + q % 2;
                        if (row >= height || column >= width) continue;
                        long at = (row * width + column) * channels + c;
                        vec value = LOAD(map + at), z = value * factor + offset;
                        vec gradient = where_positive(z, g), normal = (value - LOAD(m + c)) * LOAD(s + c);
                        if (pass) {
                            STORE(dx + at, factor * (gradient - of_shift - normal * of_scale));
                        } else {
                            of_scale += gradient * normal;
                            of_shift += gradient;
                        }
                    }
                    if (!pass) {
                        STORE(ds + c, of_scale);
                        STORE(db + c, of_shift);
                    }
                }
    }
}

void norm_relu_pool(const float *x, Norm norm, float *y, float *mean, float *rate, long n, long height, long width, long channels, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long image = 0; image < n; image++)
        normalise(x + image * height * width * channels, norm, y + image * (height / 2) * (width / 2) * channels, mean + image * channels,
                  rate + image * channels, height, width, channels);
}

/* scale_sum and shift_sum, [N][C], are the parameters' gradients image by image. */
void norm_relu_pool_backward(const float *x, Norm norm, const float *mean, const float *rate, const float *dy, float *dx, float *scale_sum,
                             float *shift_sum, long n, long height, long width, long channels, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long image = 0; image < n; image++)
        normalise_backward(x + image * height * width * channels, norm, mean + image * channels, rate + image * channels,
                           dy + image * (height / 2) * (width / 2) * channels, dx + image * height * width * channels, scale_sum + image * channels,
                           shift_sum + image * channels, height, width, channels);
}

/* ---- a ConvNet's first block in one: convolution of few channels, instance norm, ReLU, pooling ----
 *
 * The convolved map of an image fits a second-level cache, and computing it again costs less than fetching it from memory: it is never stored.
 */

/* What the first block keeps of an image: rows of its patches in float32 and, where `half` is set, in bfloat16; then words of two pixels each. */
typedef struct {
    float *rows, *half_rows, *patch_pairs, *map_pairs;
    long row; /* values of a row */
} Patches;

INLINE Patches patches_of(int half, long area, long n_in, long n_out) {
    long row = half ? (9 * n_in + LANES - 1) / LANES * LANES : 9 * n_in;
    float *rows = scratch(1, area * row + (half ? area * row / 2 + PIXELS / 2 * (row + n_out) : 0)), *half_rows = rows + area * row;
    if (!half) return (Patches){rows, NULL, NULL, NULL, row};
    float *patch_pairs = half_rows + area * row / 2;
    return (Patches){rows, half_rows, patch_pairs, patch_pairs + PIXELS / 2 * row, row};
}

static void convolve_image(int half, const float *x, const float *packed, const float *bias, Patches at, float *map, long height, long width,
                           long n_in, long n_out) {
    long area = height * width, words = half ? (9 * n_in + 1) / 2 : 9 * n_in, row = half ? at.row / 2 : at.row;
    int vectors = vectors_for(n_out), panel = vectors * LANES;
    const float *rows = half ? at.half_rows : at.rows;
    gather_patches(x, 0, area, height, width, n_in, at.rows, at.row);
    for (long k = 0; half && k < area * at.row; k += LANES) store_row(1, at.half_rows, k, LOAD(at.rows + k));
    for (long first = 0; first < area; first += PIXELS) {
        long count = area - first < PIXELS ? area - first : PIXELS;
        for (long o = 0; o < n_out; o += panel)
            product(half, vectors, count, words, rows + first * row, row, packed + o * words, map + first * n_out + o, n_out, bias ? bias + o : NULL);
    }
}

/* Words of the values of two rows each, `channels` in a row. */
INLINE void pair_rows(const float *rows, long count, long channels, float *out) {
    for (long p = 0; p < count; p += 2)
        for (long c = 0; c < channels; c += LANES) {
            const float *even = rows + p * channels + c;
            STORE(out + p / 2 * channels + c, pair(LOAD(even), p + 1 < count ? LOAD(even + channels) : (vec){0}));
        }
}

/* sum[9 I][O] = gradient of the weights from one image's patches and the gradient of its map. */
static void image_weights(int half, Patches at, const float *map, float *sum, long area, long n_in, long n_out) {
    long depth = 9 * n_in;
    int vectors = vectors_for(n_out), panel = vectors * LANES;
    memset(sum, 0, depth * n_out * sizeof(float));
    for (long p = 0; p < area; p += PIXELS) {
        long count = area - p < PIXELS ? area - p : PIXELS, words = half ? (count + 1) / 2 : count;
        const float *patches = at.rows + p * at.row, *gradients = map + p * n_out;
        if (half) {
            pair_rows(patches, count, at.row, at.patch_pairs);
            pair_rows(gradients, count, n_out, at.map_pairs);
            patches = at.patch_pairs;
            gradients = at.map_pairs;
        }
        for (long o = 0; o < n_out; o += panel) add_outer(half, vectors, depth, words, patches, at.row, gradients + o, n_out, sum + o, n_out);
    }
}

void first_block(int half, const float *x, const float *w, Strides at, const float *bias, Norm norm, float *y, float *mean, float *rate, long n,
                 long height, long width, long n_in, long n_out, int threads) {
    half &= BFLOAT16;
    long area = height * width;
    float *packed = pack(half, vectors_for(n_out), w, at, n_in, n_out);
#pragma omp parallel num_threads(threads)
    {
        Patches patches = patches_of(half, area, n_in, n_out);
        float *map = scratch(2, area * n_out);
#pragma omp for schedule(static)
        for (long image = 0; image < n; image++) {
            convolve_image(half, x + image * area * n_in, packed, bias, patches, map, height, width, n_in, n_out);
            normalise(map, norm, y + image * (height / 2) * (width / 2) * n_out, mean + image * n_out, rate + image * n_out, height, width, n_out);
        }
    }
}

/* dx or dw may be NULL. The bias has no gradient: the norm takes every constant away. */
void first_block_backward(int half, const float *x, const float *w, Strides at, const float *bias, Norm norm, const float *mean, const float *rate,
                          const float *dy, float *dx, float *dw, float *scale_sum, float *shift_sum, long n, long height, long width, long n_in,
                          long n_out, int threads) {
    half &= BFLOAT16;
    long area = height * width, depth = 9 * n_in;
    float *packed = pack(half, vectors_for(n_out), w, at, n_in, n_out), *turned = dx ? pack_turned(w, at, n_in, n_out) : NULL;
    float *of_image = dw ? scratch(4, n * depth * n_out) : NULL;
#pragma omp parallel num_threads(threads)
    {
        Patches patches = patches_of(half, area, n_in, n_out);
        float *map = scratch(2, area * n_out);
#pragma omp for schedule(static)
        for (long image = 0; image < n; image++) {
            convolve_image(half, x + image * area * n_in, packed, bias, patches, map, height, width, n_in, n_out);
            normalise_backward(map, norm, mean + image * n_out, rate + image * n_out, dy + image * (height / 2) * (width / 2) * n_out, map,
                               scale_sum + image * n_out, shift_sum + image * n_out, height, width, n_out);
            if (dw) image_weights(half, patches, map, of_image + image * depth * n_out, area, n_in, n_out);
            if (dx) image_gradient(map, turned, dx + image * area * n_in, height, width, n_in, n_out);
        }
#pragma omp for schedule(static)
        for (long k = 0; k < (dw ? depth : 0); k++)
            for (long o = 0; o < n_out; o++) {
                float sum = 0;
                for (long image = 0; image < n; image++) sum += of_image[(image * depth + k) * n_out + o];
                dw[weight_at(at, n_in, o, k)] = sum;
            }
    }
}

/* Convolutions and instance norm for float32 maps in channels-last order, on any CPU the compiler vectorises for.
 *
 * 3x3 convolutions of stride 1 and padding 1 use Winograd's minimal filtering F(4x4, 3x3) (Lavin and Gray, 2016): 36 multiplications for 16 outputs
 * of a channel pair instead of 144. Its adjoints give both gradients. Images of up to MOST_DIRECT channels are convolved directly: there the
 * transforms would cost more than they save.
 *
 * Every sum is added up in an order that does not depend on the number of threads, so neither do the results.
 *
 * Shapes: N images, H x W pixels, I input and O output channels, T tiles of 4x4 outputs. O, and I where Winograd's way is taken, are multiples of 16.
 */

#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
enum { LANES = 16, VECTORS = 1, ROWS = 12 };
#elif defined(__AVX__)
enum { LANES = 8, VECTORS = 2, ROWS = 6 };
#else
enum { LANES = 4, VECTORS = 4, ROWS = 4 };
#endif
enum {
    PANEL = LANES * VECTORS,
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

/* ---- small matrix products ---- */

/* out[r][0..PANEL) = bias + sum_k a[r][k] b[k][0..PANEL) for `rows` rows, known when it is compiled. */
INLINE void product_of(int rows, long depth, const float *a, long a_row, const float *b, float *out, long out_row, const float *bias) {
    vec sum[ROWS][VECTORS];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VECTORS; v++) sum[r][v] = bias ? LOAD(bias + v * LANES) : (vec){0};
    for (long k = 0; k < depth; k++) {
        vec right[VECTORS];
        for (int v = 0; v < VECTORS; v++) right[v] = LOAD(b + k * PANEL + v * LANES);
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < VECTORS; v++) sum[r][v] += a[r * a_row + k] * right[v];
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VECTORS; v++) STORE(out + r * out_row + v * LANES, sum[r][v]);
}

static void product(long rows, long depth, const float *a, long a_row, const float *b, float *out, long out_row, const float *bias) {
    long r = 0;
    for (; r + ROWS <= rows; r += ROWS) product_of(ROWS, depth, a + r * a_row, a_row, b, out + r * out_row, out_row, bias);
    for (; r < rows; r++) product_of(1, depth, a + r * a_row, a_row, b, out + r * out_row, out_row, bias);
}

/* out[i][0..PANEL) += sum_t a[t][i] b[t][0..PANEL) for `rows` values of i, known when it is compiled. */
INLINE void add_outer_of(int rows, long depth, const float *a, long a_row, const float *b, long b_row, float *out, long out_row) {
    vec sum[ROWS][VECTORS];
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < VECTORS; v++) sum[i][v] = LOAD(out + i * out_row + v * LANES);
    for (long t = 0; t < depth; t++) {
        vec right[VECTORS];
        for (int v = 0; v < VECTORS; v++) right[v] = LOAD(b + t * b_row + v * LANES);
        for (int i = 0; i < rows; i++)
            for (int v = 0; v < VECTORS; v++) sum[i][v] += a[t * a_row + i] * right[v];
    }
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < VECTORS; v++) STORE(out + i * out_row + v * LANES, sum[i][v]);
}

static void add_outer(long rows, long depth, const float *a, long a_row, const float *b, long b_row, float *out, long out_row) {
    long i = 0;
    for (; i + ROWS <= rows; i += ROWS) add_outer_of(ROWS, depth, a + i, a_row, b, b_row, out + i * out_row, out_row);
    for (; i + 2 <= rows; i += 2) add_outer_of(2, depth, a + i, a_row, b, b_row, out + i * out_row, out_row);
    for (; i < rows; i++) add_outer_of(1, depth, a + i, a_row, b, b_row, out + i * out_row, out_row);
}

/* ---- Winograd's transforms, one dimension each: B^T d, A^T m, A g, G w, G^T u ---- */

INLINE void input_1d(const vec *d, int step, vec *r, int r_step) {
    vec d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step], d5 = d[5 * step];
    r[0] = 4 * d0 - 5 * d2 + d4;
    r[r_step] = d3 + d4 - 4 * (d1 + d2);
    r[2 * r_step] = d4 - d3 + 4 * (d1 - d2);
    r[3 * r_step] = d4 - d2 + 2 * (d3 - d1);
    r[4 * r_step] = d4 - d2 + 2 * (d1 - d3);
    r[5 * r_step] = 4 * d1 - 5 * d3 + d5;
}

INLINE void output_1d(const vec *m, int step, vec *r, int r_step) {
    vec m0 = m[0], sum = m[step] + m[2 * step], difference = m[step] - m[2 * step];
    vec far_sum = m[3 * step] + m[4 * step], far_difference = m[3 * step] - m[4 * step];
    r[0] = m0 + sum + far_sum;
    r[r_step] = difference + 2 * far_difference;
    r[2 * r_step] = sum + 4 * far_sum;
    r[3 * r_step] = difference + 8 * far_difference + m[5 * step];
}

INLINE void output_adjoint_1d(const vec *g, int step, vec *r, int r_step) {
    vec g0 = g[0], g1 = g[step], g2 = g[2 * step], g3 = g[3 * step];
    vec even = g0 + g2, odd = g1 + g3, far_even = g0 + 4 * g2, far_odd = 2 * g1 + 8 * g3;
    r[0] = g0;
    r[r_step] = even + odd;
    r[2 * r_step] = even - odd;
    r[3 * r_step] = far_even + far_odd;
    r[4 * r_step] = far_even - far_odd;
    r[5 * r_step] = g3;
}

INLINE void weight_1d(const vec *w, int step, vec *r, int r_step) {
    vec w0 = w[0], w1 = w[step], w2 = w[2 * step], far = w0 * (1.f / 24) + w2 * (1.f / 6);
    r[0] = w0 * 0.25f;
    r[r_step] = (w0 + w2 + w1) * (-1.f / 6);
    r[2 * r_step] = (w0 + w2 - w1) * (-1.f / 6);
    r[3 * r_step] = far + w1 * (1.f / 12);
    r[4 * r_step] = far - w1 * (1.f / 12);
    r[5 * r_step] = w2;
}

INLINE void weight_adjoint_1d(const vec *u, int step, vec *r, int r_step) {
    vec sum = u[step] + u[2 * step], far_sum = u[3 * step] + u[4 * step];
    r[0] = u[0] * 0.25f - sum * (1.f / 6) + far_sum * (1.f / 24);
    r[r_step] = (u[2 * step] - u[step]) * (1.f / 6) + (u[3 * step] - u[4 * step]) * (1.f / 12);
    r[2 * r_step] = (far_sum - sum) * (1.f / 6) + u[5 * step];
}

/* u[panel of O][frequency][I][PANEL] of weights; `turned` for the gradient of the input: filters rotated by half a turn (in and out are swapped by
 * the caller's strides). */
static void transform_weights(const float *w, Strides at, long n_in, long n_out, int turned, float *u, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) collapse(2)
    for (long panel = 0; panel < n_out / PANEL; panel++)
        for (long i = 0; i < n_in; i++)
            for (int v = 0; v < VECTORS; v++) {
                const float *from = w + (panel * PANEL + v * LANES) * at.out + i * at.in;
                vec filter[9], half[18], whole[FREQUENCIES];
                for (int r = 0; r < 3; r++)
                    for (int s = 0; s < 3; s++)
                        for (int lane = 0; lane < LANES; lane++)
                            filter[3 * r + s][lane] = from[lane * at.out + (turned ? 2 - r : r) * at.row + (turned ? 2 - s : s) * at.column];
                for (int s = 0; s < 3; s++) weight_1d(filter + s, 3, half + s, 3);
                for (int r = 0; r < 6; r++) weight_1d(half + 3 * r, 1, whole + 6 * r, 1);
                for (int f = 0; f < FREQUENCIES; f++) STORE(u + ((panel * FREQUENCIES + f) * n_in + i) * PANEL + v * LANES, whole[f]);
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

/* The transform of one tile's input, channel c of frequency f at out[f * frequency + c]. */
INLINE void transform_input(const float **at, long channels, float *out, long frequency) {
    for (long c = 0; c < channels; c += LANES) {
        vec d[FREQUENCIES], half[FREQUENCIES];
        for (int f = 0; f < FREQUENCIES; f++) d[f] = LOAD(at[f] + c);
        for (int j = 0; j < 6; j++) input_1d(d + j, 6, half + j, 6);
        for (int i = 0; i < 6; i++) input_1d(half + 6 * i, 1, d + 6 * i, 1);
        for (int f = 0; f < FREQUENCIES; f++) STORE(out + f * frequency + c, d[f]);
    }
}

/* The transform of one tile's gradient, channel c of frequency f at out[f * frequency + c / PANEL * panel + c % PANEL]. */
INLINE void transform_gradient(const float **at, long channels, float *out, long frequency, long panel) {
    for (long c = 0; c < channels; c += LANES) {
        vec g[16], half[24], e[FREQUENCIES];
        for (int p = 0; p < 16; p++) g[p] = LOAD(at[p] + c);
        for (int j = 0; j < 4; j++) output_adjoint_1d(g + j, 4, half + j, 4);
        for (int i = 0; i < 6; i++) output_adjoint_1d(half + 4 * i, 1, e + 6 * i, 1);
        float *to = out + c / PANEL * panel + c % PANEL;
        for (int f = 0; f < FREQUENCIES; f++) STORE(to + f * frequency, e[f]);
    }
}

/* y[N][H][W][O] = 3x3 convolution of x[N][H][W][I] with w, padding 1, plus bias[O] if there is one. */
void winograd(const float *x, const float *w, Strides at, int turned, const float *bias, float *y, long n, long height, long width, long n_in,
              long n_out, int threads) {
    long rows = (height + 3) / 4, columns = (width + 3) / 4, tiles = n * rows * columns;
    float *u = scratch(0, FREQUENCIES * n_in * n_out);
    transform_weights(w, at, n_in, n_out, turned, u, threads);
#pragma omp parallel num_threads(threads)
    {
        float *v = scratch(1, FREQUENCIES * BLOCK * n_in + n_in), *m = scratch(2, FREQUENCIES * BLOCK * PANEL);
        float *zeros = v + FREQUENCIES * BLOCK * n_in;
        memset(zeros, 0, n_in * sizeof(float));
#pragma omp for schedule(static)
        for (long first = 0; first < tiles; first += BLOCK) {
            long count = tiles - first < BLOCK ? tiles - first : BLOCK;
            for (long t = 0; t < count; t++) {
                Tile tile = tile_at(first + t, rows, columns);
                const float *from[FREQUENCIES];
                gather(x, tile.n, tile.y - 1, tile.x - 1, 6, height, width, n_in, zeros, from);
                transform_input(from, n_in, v + t * n_in, BLOCK * n_in);
            }
            /* panel by panel, so that the products stay in a near cache and the weights are one long stream */
            for (long o = 0; o < n_out; o += PANEL) {
                for (int f = 0; f < FREQUENCIES; f++)
                    product(count, n_in, v + f * BLOCK * n_in, n_in, u + (o * FREQUENCIES + f * PANEL) * n_in, m + f * BLOCK * PANEL, PANEL, NULL);
                for (long t = 0; t < count; t++) {
                    Tile tile = tile_at(first + t, rows, columns);
                    for (long c = 0; c < PANEL; c += LANES) {
                        vec all[FREQUENCIES], half[24], out[16];
                        for (int f = 0; f < FREQUENCIES; f++) all[f] = LOAD(m + (f * BLOCK + t) * PANEL + c);
                        for (int j = 0; j < 6; j++) output_1d(all + j, 6, half + j, 6);
                        for (int i = 0; i < 4; i++) output_1d(half + 6 * i, 1, out + 4 * i, 1);
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
void winograd_weights(const float *x, const float *dy, float *dw, Strides at, long n, long height, long width, long n_in, long n_out, int threads) {
    long rows = (height + 3) / 4, columns = (width + 3) / 4, tiles = n * rows * columns;
    long most = n_in > n_out ? n_in : n_out;
    float *du = scratch(0, FREQUENCIES * n_in * n_out + most);
    /* rows a power of two apart would share a few lines of the cache */
    long v_row = n_in + 16;
    float *v = scratch(1, FREQUENCIES * SLAB * v_row), *m = scratch(2, FREQUENCIES * SLAB * n_out);
    float *zeros = du + FREQUENCIES * n_in * n_out;
    memset(du, 0, (FREQUENCIES * n_in * n_out + most) * sizeof(float));
#pragma omp parallel num_threads(threads)
    for (long first = 0; first < tiles; first += SLAB) {
        long count = tiles - first < SLAB ? tiles - first : SLAB;
#pragma omp for schedule(static)
        for (long t = 0; t < count; t++) {
            Tile tile = tile_at(first + t, rows, columns);
            const float *from[FREQUENCIES];
            gather(x, tile.n, tile.y - 1, tile.x - 1, 6, height, width, n_in, zeros, from);
            transform_input(from, n_in, v + t * v_row, SLAB * v_row);
            gather(dy, tile.n, tile.y, tile.x, 4, height, width, n_out, zeros, from);
            transform_gradient(from, n_out, m + t * PANEL, SLAB * n_out, SLAB * PANEL);
        }
#pragma omp for schedule(static) collapse(2)
        for (int f = 0; f < FREQUENCIES; f++)
            for (long o = 0; o < n_out; o += PANEL) {
                const float *right = m + f * SLAB * n_out + o * SLAB;
                add_outer(n_in, count, v + f * SLAB * v_row, v_row, right, PANEL, du + f * n_in * n_out + o, n_out);
            }
    }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long i = 0; i < n_in; i++)
        for (long o = 0; o < n_out; o += LANES) {
            vec all[FREQUENCIES], half[18], filter[9];
            for (int f = 0; f < FREQUENCIES; f++) all[f] = LOAD(du + (f * n_in + i) * n_out + o);
            for (int j = 0; j < 6; j++) weight_adjoint_1d(all + j, 6, half + j, 6);
            for (int r = 0; r < 3; r++) weight_adjoint_1d(half + 6 * r, 1, filter + 3 * r, 1);
            for (int r = 0; r < 3; r++)
                for (int s = 0; s < 3; s++)
                    for (int lane = 0; lane < LANES; lane++) dw[(o + lane) * at.out + i * at.in + r * at.row + s * at.column] = filter[3 * r + s][lane];
        }
}

/* ---- direct convolution of images of few channels ---- */

/* The 9 I inputs of each of `count` output pixels from `first` on, in the order row, column, channel. */
INLINE void gather_patches(const float *x, long first, long count, long height, long width, long n_in, float *out) {
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
        if (++c == width) {
            c = 0;
            if (++y == height) {
                y = 0;
                n++;
            }
        }
    }
}

/* The weights as panels of output channels, [panel][9 I][PANEL]. */
static float *pack(const float *w, Strides at, long n_in, long n_out) {
    long depth = 9 * n_in;
    float *packed = scratch(0, depth * n_out);
    for (long o = 0; o < n_out; o++)
        for (long k = 0; k < depth; k++)
            packed[(o / PANEL * depth + k) * PANEL + o % PANEL] = w[o * at.out + k % n_in * at.in + k / n_in / 3 * at.row + k / n_in % 3 * at.column];
    return packed;
}

/* The weights as panels of the 9 I inputs, filled up with zeros, [panel][O][PANEL]. */
static float *pack_turned(const float *w, Strides at, long n_in, long n_out) {
    long depth = 9 * n_in, padded = (depth + PANEL - 1) / PANEL * PANEL;
    float *packed = scratch(3, padded * n_out);
    memset(packed, 0, padded * n_out * sizeof(float));
    for (long k = 0; k < depth; k++)
        for (long o = 0; o < n_out; o++)
            packed[(k / PANEL * n_out + o) * PANEL + k % PANEL] = w[o * at.out + k % n_in * at.in + k / n_in / 3 * at.row + k / n_in % 3 * at.column];
    return packed;
}

/* The gradient of one image from that of its convolved map. */
static void image_gradient(const float *dy, const float *turned, float *dx, long height, long width, long n_in, long n_out) {
    long depth = 9 * n_in, padded = (depth + PANEL - 1) / PANEL * PANEL;
    float *patches = scratch(5, PIXELS * padded);
    memset(dx, 0, height * width * n_in * sizeof(float));
    for (long first = 0; first < height * width; first += PIXELS) {
        long count = height * width - first < PIXELS ? height * width - first : PIXELS;
        for (long k = 0; k < padded; k += PANEL) product(count, n_out, dy + first * n_out, n_out, turned + k * n_out, patches + k, padded, NULL);
        for (long p = 0; p < count; p++) {
            long y = (first + p) / width, c = (first + p) % width;
            for (int r = -1; r <= 1; r++)
                for (int s = -1; s <= 1; s++)
                    if (y + r >= 0 && y + r < height && c + s >= 0 && c + s < width)
                        for (long i = 0; i < n_in; i++) dx[((y + r) * width + c + s) * n_in + i] += patches[p * padded + (3 * (r + 1) + s + 1) * n_in + i];
        }
    }
}

void direct(const float *x, const float *w, Strides at, const float *bias, float *y, long n, long height, long width, long n_in, long n_out,
            int threads) {
    long depth = 9 * n_in, pixels = n * height * width;
    float *packed = pack(w, at, n_in, n_out);
#pragma omp parallel num_threads(threads)
    {
        float *patches = scratch(1, PIXELS * depth);
#pragma omp for schedule(static)
        for (long first = 0; first < pixels; first += PIXELS) {
            long count = pixels - first < PIXELS ? pixels - first : PIXELS;
            gather_patches(x, first, count, height, width, n_in, patches);
            for (long o = 0; o < n_out; o += PANEL)
                product(count, depth, patches, depth, packed + o * depth, y + first * n_out + o, n_out, bias ? bias + o : NULL);
        }
    }
}

void direct_weights(const float *x, const float *dy, float *dw, Strides at, long n, long height, long width, long n_in, long n_out, int threads) {
    long depth = 9 * n_in, pixels = n * height * width;
    float *sum = scratch(0, depth * n_out), *patches = scratch(1, PIXEL_SLAB * depth);
    memset(sum, 0, depth * n_out * sizeof(float));
#pragma omp parallel num_threads(threads)
    for (long first = 0; first < pixels; first += PIXEL_SLAB) {
        long count = pixels - first < PIXEL_SLAB ? pixels - first : PIXEL_SLAB;
#pragma omp for schedule(static)
        for (long p = 0; p < count; p += PIXELS)
            gather_patches(x, first + p, count - p < PIXELS ? count - p : PIXELS, height, width, n_in, patches + p * depth);
#pragma omp for schedule(static)
        for (long o = 0; o < n_out; o += PANEL)
            for (long p = 0; p < count; p += PIXELS)
                add_outer(depth, count - p < PIXELS ? count - p : PIXELS, patches + p * depth, depth, dy + (first + p) * n_out + o, n_out, sum + o, n_out);
    }
    for (long o = 0; o < n_out; o++)
        for (long k = 0; k < depth; k++) dw[o * at.out + k % n_in * at.in + k / n_in / 3 * at.row + k / n_in % 3 * at.column] = sum[k * n_out + o];
}

void direct_input(const float *dy, const float *w, Strides at, float *dx, long n, long height, long width, long n_in, long n_out, int threads) {
    float *turned = pack_turned(w, at, n_in, n_out);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long image = 0; image < n; image++)
        image_gradient(dy + image * height * width * n_out, turned, dx + image * height * width * n_in, height, width, n_in, n_out);
}

/* ---- mean and variance of every channel of an image ---- */

enum { SUMS = 4 /* kept apart, so that no addition waits for the one before */ };

/* Sum over pixels of map - *middle, squared or not, for LANES channels. */
INLINE vec sum_of(const float *map, vec middle, int squared, long area, long channels) {
    vec sum[SUMS] = {{0}};
    for (long p = 0; p < area; p += SUMS)
        for (int q = 0; q < SUMS; q++) {
            if (p + q >= area) break;
            vec off = LOAD(map + (p + q) * channels) - middle;
            sum[q] += squared ? (vec)(off * off) : (vec)off;
        }
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

static void moments_of(const float *map, float *mean, float *var, long area, long channels) {
    for (long c = 0; c < channels; c += LANES) STORE(mean + c, sum_of(map + c, (vec){0}, 0, area, channels) / (float)area);
    for (long c = 0; c < channels; c += LANES) STORE(var + c, sum_of(map + c, LOAD(mean + c), 1, area, channels) / (float)area);
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
static void normalise_backward(const float *map, Norm norm, const float *m, const float *s, const float *dy, float *dx, float *ds, float *db, long height,
                               long width, long channels) {
    long area = height * width;
    memset(ds, 0, channels * sizeof(float));
    memset(db, 0, channels * sizeof(float));
    for (int pass = 0; pass < 2; pass++)
        for (long i = 0; i < height / 2 + (pass && height % 2); i++)
            for (long j = 0; j < width / 2 + (pass && width % 2); j++)
                for (long c = 0; c < channels; c += LANES) {
                    int pooled = i < height / 2 && j < width / 2;
                    vec factor = LOAD(s + c) * LOAD(norm.scale + c), offset = LOAD(norm.shift + c) - LOAD(m + c) * factor, g = {0};
                    if (pooled) g = LOAD(dy + (i * (width / 2) + j) * channels + c) * 0.25f;
                    vec of_scale = LOAD(ds + c) / (float)(pass ? area : 1), of_shift = LOAD(db + c) / (float)(pass ? area : 1);
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

static void convolve_image(const float *x, const float *packed, const float *bias, float *patches, float *map, long height, long width, long n_in,
                           long n_out) {
    long depth = 9 * n_in;
    gather_patches(x, 0, height * width, height, width, n_in, patches);
    for (long first = 0; first < height * width; first += PIXELS) {
        long count = height * width - first < PIXELS ? height * width - first : PIXELS;
        for (long o = 0; o < n_out; o += PANEL)
            product(count, depth, patches + first * depth, depth, packed + o * depth, map + first * n_out + o, n_out, bias ? bias + o : NULL);
    }
}

void first_block(const float *x, const float *w, Strides at, const float *bias, Norm norm, float *y, float *mean, float *rate, long n, long height,
                 long width, long n_in, long n_out, int threads) {
    long area = height * width, depth = 9 * n_in;
    float *packed = pack(w, at, n_in, n_out);
#pragma omp parallel num_threads(threads)
    {
        float *patches = scratch(1, area * depth), *map = scratch(2, area * n_out);
#pragma omp for schedule(static)
        for (long image = 0; image < n; image++) {
            convolve_image(x + image * area * n_in, packed, bias, patches, map, height, width, n_in, n_out);
            normalise(map, norm, y + image * (height / 2) * (width / 2) * n_out, mean + image * n_out, rate + image * n_out, height, width, n_out);
        }
    }
}

/* dx or dw may be NULL. The bias has no gradient: the norm takes every constant away. */
void first_block_backward(const float *x, const float *w, Strides at, const float *bias, Norm norm, const float *mean, const float *rate,
                          const float *dy, float *dx, float *dw, float *scale_sum, float *shift_sum, long n, long height, long width, long n_in,
                          long n_out, int threads) {
    long area = height * width, depth = 9 * n_in;
    float *packed = pack(w, at, n_in, n_out), *turned = dx ? pack_turned(w, at, n_in, n_out) : NULL;
    float *of_image = dw ? scratch(4, n * depth * n_out) : NULL;
#pragma omp parallel num_threads(threads)
    {
        float *patches = scratch(1, area * depth), *map = scratch(2, area * n_out);
#pragma omp for schedule(static)
        for (long image = 0; image < n; image++) {
            convolve_image(x + image * area * n_in, packed, bias, patches, map, height, width, n_in, n_out);
            normalise_backward(map, norm, mean + image * n_out, rate + image * n_out, dy + image * (height / 2) * (width / 2) * n_out, map,
                               scale_sum + image * n_out, shift_sum + image * n_out, height, width, n_out);
            if (dw) {
                float *sum = of_image + image * depth * n_out;
                memset(sum, 0, depth * n_out * sizeof(float));
                for (long p = 0; p < area; p += PIXELS)
                    for (long o = 0; o < n_out; o += PANEL)
                        add_outer(depth, area - p < PIXELS ? area - p : PIXELS, patches + p * depth, depth, map + p * n_out + o, n_out, sum + o, n_out);
            }
            if (dx) image_gradient(map, turned, dx + image * area * n_in, height, width, n_in, n_out);
        }
#pragma omp for schedule(static)
        for (long k = 0; k < (dw ? depth : 0); k++)
            for (long o = 0; o < n_out; o++) {
                float sum = 0;
                for (long image = 0; image < n; image++) sum += of_image[(image * depth + k) * n_out + o];
                dw[o * at.out + k % n_in * at.in + k / n_in / 3 * at.row + k / n_in % 3 * at.column] = sum;
            }
    }
}

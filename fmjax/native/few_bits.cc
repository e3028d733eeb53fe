// Products of a few rows with a weight of few bits, which read each byte of it once.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>

#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__))
#define FMJAX_VECTORS
#include <immintrin.h>
#endif

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

constexpr int64_t kTile = 512;   // columns whose sums stay in the nearest cache
constexpr int64_t kPiece = 128;  // columns that a thread takes at least

// What a product reads and writes: x [rows, in], codes as QTensor has them, scales [in / block, out], levels of codes of
// four bits, y [rows, out].
struct Product {
  const float* x;
  const void* codes;
  const float* scales;
  const float* levels;
  float* y;
  int64_t in, out, block;
};

// Vectors of floats, and numbers of few bits as such.
#if defined(__AVX512F__)
constexpr int64_t kLanes = 16;
using Floats = __m512;

inline Floats Load(const float* p) { return _mm512_loadu_ps(p); }
inline void Store(float* p, Floats x) { _mm512_storeu_ps(p, x); }
inline Floats Add(Floats sum, float x, Floats y) { return _mm512_fmadd_ps(_mm512_set1_ps(x), y, sum); }

inline Floats FromInt8(const int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}

struct Levels {
  explicit Levels(const float* p) : all(_mm512_loadu_ps(p)) {}

  // Of the upper and of the lower halves of as many bytes. Of an index the permutation reads the lower four bits alone.
  void Of(const uint8_t* p, Floats* even, Floats* odd) const {
    const __m512i byte = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    *even = _mm512_permutexvar_ps(_mm512_srli_epi32(byte, 4), all);
    *odd = _mm512_permutexvar_ps(byte, all);
  }

  Floats all;
};
#elif defined(FMJAX_VECTORS)
constexpr int64_t kLanes = 8;
using Floats = __m256;

inline Floats Load(const float* p) { return _mm256_loadu_ps(p); }
inline void Store(float* p, Floats x) { _mm256_storeu_ps(p, x); }
inline Floats Add(Floats sum, float x, Floats y) { return _mm256_fmadd_ps(_mm256_set1_ps(x), y, sum); }

inline Floats FromInt8(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}

struct Levels {
  explicit Levels(const float* p) : lower(_mm256_loadu_ps(p)), upper(_mm256_loadu_ps(p + 8)) {}

  // Of the upper and of the lower halves of as many bytes.
  void Of(const uint8_t* p, Floats* even, Floats* odd) const {
    const __m256i byte = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    *even = At(_mm256_srli_epi32(byte, 4), _mm256_slli_epi32(byte, 24));
    *odd = At(byte, _mm256_slli_epi32(byte, 28));
  }

  // Of an index the permutations read the lower three bits alone; the fourth is the sign of `fourth`.
  Floats At(__m256i index, __m256i fourth) const {
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(lower, index), _mm256_permutevar8x32_ps(upper, index),
                            _mm256_castsi256_ps(fourth));
  }

  Floats lower, upper;
};
#endif

// sums[r][c] += sum over the N rows of the weight from `first` on, of columns [c0, c0 + count).
template <int R, int N>
void AddInt8(const Product& p, int64_t first, int64_t c0, int64_t count, float (*sums)[kTile]) {
  const int8_t* w = static_cast<const int8_t*>(p.codes) + first * p.out + c0;
  float x[R][N];
  for (int r = 0; r < R; ++r)
    for (int n = 0; n < N; ++n) x[r][n] = p.x[r * p.in + first + n];
  int64_t c = 0;
#if defined(FMJAX_VECTORS)
  for (; c + kLanes <= count; c += kLanes) {
    Floats sum[R];
    for (int r = 0; r < R; ++r) sum[r] = Load(&sums[r][c]);
    for (int n = 0; n < N; ++n) {
      const Floats level = FromInt8(w + n * p.out + c);
      for (int r = 0; r < R; ++r) sum[r] = Add(sum[r], x[r][n], level);
    }
    for (int r = 0; r < R; ++r) Store(&sums[r][c], sum[r]);
  }
#endif
#pragma GCC ivdep
  for (; c < count; ++c) {
    float level[N];
    for (int n = 0; n < N; ++n) level[n] = static_cast<float>(w[n * p.out + c]);
    for (int r = 0; r < R; ++r) {
      float sum = sums[r][c];
      for (int n = 0; n < N; ++n) sum += x[r][n] * level[n];
      sums[r][c] = sum;
    }
  }
}

// As AddInt8, of N rows of two numbers a byte, the even one in the upper half.
template <int R, int N>
void AddFourBits(const Product& p, int64_t first, int64_t c0, int64_t count, float (*sums)[kTile]) {
  const uint8_t* w = static_cast<const uint8_t*>(p.codes) + first / 2 * p.out + c0;
  float x[R][2 * N];
  for (int r = 0; r < R; ++r)
    for (int n = 0; n < 2 * N; ++n) x[r][n] = p.x[r * p.in + first + n];
  int64_t c = 0;
#if defined(FMJAX_VECTORS)
  const Levels levels(p.levels);
  for (; c + kLanes <= count; c += kLanes) {
    Floats sum[R];
    for (int r = 0; r < R; ++r) sum[r] = Load(&sums[r][c]);
    for (int n = 0; n < N; ++n) {
      Floats even, odd;
      levels.Of(w + n * p.out + c, &even, &odd);
      for (int r = 0; r < R; ++r) {
        sum[r] = Add(sum[r], x[r][2 * n], even);
        sum[r] = Add(sum[r], x[r][2 * n + 1], odd);
      }
    }
    for (int r = 0; r < R; ++r) Store(&sums[r][c], sum[r]);
  }
#endif
  for (; c < count; ++c) {
    for (int n = 0; n < N; ++n) {
      const uint8_t byte = w[n * p.out + c];
      const float even = p.levels[byte >> 4], odd = p.levels[byte & 15];
      for (int r = 0; r < R; ++r) sums[r][c] += x[r][2 * n] * even + x[r][2 * n + 1] * odd;
    }
  }
}

template <int R, bool kFourBits>
void Columns(const Product& p, int64_t begin, int64_t end) {
  alignas(64) float sums[R][kTile];
  for (int64_t c0 = begin; c0 < end; c0 += kTile) {
    const int64_t count = std::min(kTile, end - c0);
    for (int r = 0; r < R; ++r) std::fill_n(p.y + r * p.out + c0, count, 0.0f);
    for (int64_t first = 0; first < p.in; first += p.block) {
      for (int r = 0; r < R; ++r) std::fill_n(sums[r], count, 0.0f);
      int64_t i = first;
      const int64_t last = first + p.block;
      if constexpr (kFourBits) {
        for (; i + 8 <= last; i += 8) AddFourBits<R, 4>(p, i, c0, count, sums);
        for (; i < last; i += 2) AddFourBits<R, 1>(p, i, c0, count, sums);
      } else {
        for (; i + 8 <= last; i += 8) AddInt8<R, 8>(p, i, c0, count, sums);
        for (; i < last; ++i) AddInt8<R, 1>(p, i, c0, count, sums);
      }
      const float* scale = p.scales + first / p.block * p.out + c0;
      for (int r = 0; r < R; ++r) {
        float* y = p.y + r * p.out + c0;
        for (int64_t c = 0; c < count; ++c) y[c] += scale[c] * sums[r][c];
      }
    }
  }
}

template <bool kFourBits>
void Rows(const Product& whole, int64_t rows, int64_t begin, int64_t end) {
  for (int64_t row = 0; row < rows;) {
    Product part = whole;
    part.x += row * whole.in;
    part.y += row * whole.out;
    const int64_t left = rows - row;
    if (left >= 8) {
      Columns<8, kFourBits>(part, begin, end), row += 8;
    } else if (left >= 4) {
      Columns<4, kFourBits>(part, begin, end), row += 4;
    } else if (left >= 2) {
      Columns<2, kFourBits>(part, begin, end), row += 2;
    } else {
      Columns<1, kFourBits>(part, begin, end), row += 1;
    }
  }
}

// Pieces of the columns, which threads take until there are none. The caller takes too, so that it waits for no thread
// that is not at work on a piece.
struct Pieces {
  Product product;
  int64_t rows, width, count;
  bool four_bits;
  std::atomic<int64_t> taken{0}, done{0};

  void Work() {
    for (int64_t piece; (piece = taken.fetch_add(1)) < count;) {
      const int64_t begin = piece * width, end = std::min(product.out, begin + width);
      four_bits ? Rows<true>(product, rows, begin, end) : Rows<false>(product, rows, begin, end);
      done.fetch_add(1, std::memory_order_release);
    }
  }
};

ffi::Error Multiply(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::AnyBuffer codes, ffi::Buffer<ffi::F32> scales,
                    ffi::Buffer<ffi::F32> levels, ffi::ResultBuffer<ffi::F32> y) {
  const auto xs = x.dimensions(), ss = scales.dimensions(), cs = codes.dimensions();
  if (xs.size() != 2 || ss.size() != 2 || cs.size() != 2) return ffi::Error::InvalidArgument("expected matrices");
  const int64_t rows = xs[0], in = xs[1], out = cs[1], blocks = ss[0];
  const bool four_bits = codes.element_type() == ffi::U8;
  if (!four_bits && codes.element_type() != ffi::S8) return ffi::Error::InvalidArgument("codes are int8 or uint8");
  if (cs[0] * (four_bits ? 2 : 1) != in || ss[1] != out || blocks == 0 || in % blocks || (four_bits && in / blocks % 2))
    return ffi::Error::InvalidArgument("codes and scales do not fit");
  if (rows == 0 || out == 0) return ffi::Error::Success();
  if (four_bits && levels.element_count() != 16) return ffi::Error::InvalidArgument("expected 16 levels");
  auto pieces = std::make_shared<Pieces>();
  pieces->product = {x.typed_data(), codes.untyped_data(), scales.typed_data(), levels.typed_data(), y->typed_data(),
                     in, out, in / blocks};
  pieces->rows = rows;
  pieces->four_bits = four_bits;
  const int64_t threads = std::max<int64_t>(1, pool.num_threads());
  const int64_t wanted = std::max<int64_t>(1, std::min(threads > 1 ? 2 * threads : 1, out / kPiece));
  pieces->width = ((out + wanted - 1) / wanted + 63) / 64 * 64;
  pieces->count = (out + pieces->width - 1) / pieces->width;
  for (int64_t i = 1; i < std::min(threads, pieces->count); ++i) pool.Schedule([pieces] { pieces->Work(); });
  pieces->Work();
  while (pieces->done.load(std::memory_order_acquire) < pieces->count) std::this_thread::yield();
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(FewBitsProduct, Multiply,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());

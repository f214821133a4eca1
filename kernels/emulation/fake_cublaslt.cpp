// libcublasLt.so.13 for machines without a GPU: the calls that kernels/src/cuda/cublaslt.rs makes, as plain loops over the
// memory of the emulated driver, in the order of its streams. A product that no GPU would take aborts and says why.
//
// Sums are cut into as many parts as the rows say, so that a row's bits depend on its batch, as the library's own do: who
// relies on the contrary is found. EMU_CUBLASLT: the version that it says it is (130000), `refuse` to find no algorithm, or
// `double` to give twice what is right, which shows that it was asked.
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace {
enum { SUCCESS = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };
enum { R_32F = 0, R_16BF = 14, COMPUTE_32F = 68, DESC_TRANSA = 3, PREF_WORKSPACE = 1, PREF_ALIGNMENT_A = 5, PREF_ALIGNMENT_D = 8 };
typedef int Status;

struct Description { int compute, scale, transposed_a; };
struct Layout { int type; uint64_t rows, columns; int64_t leading; };
struct Preference { uint64_t workspace; uint32_t alignment[4]; };
// What an algorithm was chosen for; the rest of it is the library's.
struct Algorithm { uint64_t magic, m, n, k, leading, workspace, unused[2]; };
struct Choice { Algorithm algorithm; uint64_t workspace; int state; float waves; int reserved[4]; };
constexpr uint64_t MAGIC = 0x74656e6f6e6c74ull, ALIGNMENT = 16, WORKSPACE = 1 << 20;

[[noreturn]] void violation(const char* what) {
  fprintf(stderr, "EMULATION: cuBLASLt: %s\n", what);
  abort();
}
void check(bool holds, const char* what) {
  if (!holds) violation(what);
}
void* of_the_driver(const char* name) {
  void* const driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
  void* const found = driver ? dlsym(driver, name) : nullptr;
  check(found, "the driver is not the emulation's");
  return found;
}
float bf16(uint16_t bits) {
  const uint32_t wide = (uint32_t)bits << 16;
  float value;
  memcpy(&value, &wide, 4);
  return value;
}

// Kept: a recorded product runs again and again, and nobody says when the last time was.
struct Product {
  const uint16_t *w, *x;
  float* y;
  uint64_t m, n, k, leading;
};
void multiply(void* given) {
  auto* const need = (void (*)(uint64_t, size_t, const char*))of_the_driver("emulation_need");
  const Product& p = *(const Product*)given;
  need((uint64_t)p.w, p.m * p.k * 2, "weights of a product");
  need((uint64_t)p.x, p.n * p.k * 2, "x of a product");
  need((uint64_t)p.y, ((p.n - 1) * p.leading + p.m) * 4, "y of a product");
  const char* const text = getenv("EMU_CUBLASLT");
  const float factor = text && !strcmp(text, "double") ? 2.f : 1.f;
  const uint64_t parts = 1 + p.n % 5, each = (p.k + parts - 1) / parts;
  for (uint64_t j = 0; j < p.n; j++)
    for (uint64_t i = 0; i < p.m; i++) {
      float sum = 0;
      for (uint64_t first = 0; first < p.k; first += each) {
        float part = 0;
        for (uint64_t l = first; l < first + each && l < p.k; l++) part += bf16(p.w[i * p.k + l]) * bf16(p.x[j * p.k + l]);
        sum += part;
      }
      p.y[j * p.leading + i] = factor * sum;
    }
}
}  // namespace

#define API extern "C" __attribute__((visibility("default")))

API size_t cublasLtGetVersion() {
  const char* const text = getenv("EMU_CUBLASLT");
  return text && atol(text) ? (size_t)atol(text) : 130000;
}
API Status cublasLtCreate(void** out) { *out = new int; return SUCCESS; }
API Status cublasLtDestroy(void* handle) { delete (int*)handle; return SUCCESS; }
API Status cublasLtMatmulDescCreate(void** out, int compute, int scale) {
  *out = new Description{compute, scale, 0};
  return SUCCESS;
}
API Status cublasLtMatmulDescDestroy(void* description) { delete (Description*)description; return SUCCESS; }
API Status cublasLtMatmulDescSetAttribute(void* description, int attribute, const void* value, size_t bytes) {
  if (attribute != DESC_TRANSA || bytes != 4) return INVALID_VALUE;
  memcpy(&((Description*)description)->transposed_a, value, 4);
  return SUCCESS;
}
API Status cublasLtMatmulPreferenceCreate(void** out) { *out = new Preference{0, {256, 256, 256, 256}}; return SUCCESS; }
API Status cublasLtMatmulPreferenceDestroy(void* preference) { delete (Preference*)preference; return SUCCESS; }
API Status cublasLtMatmulPreferenceSetAttribute(void* preference, int attribute, const void* value, size_t bytes) {
  auto* const p = (Preference*)preference;
  if (attribute == PREF_WORKSPACE && bytes == 8) return memcpy(&p->workspace, value, 8), SUCCESS;
  if (attribute < PREF_ALIGNMENT_A || attribute > PREF_ALIGNMENT_D || bytes != 4) return INVALID_VALUE;
  return memcpy(&p->alignment[attribute - PREF_ALIGNMENT_A], value, 4), SUCCESS;
}
API Status cublasLtMatrixLayoutCreate(void** out, int type, uint64_t rows, uint64_t columns, int64_t leading) {
  if (!rows || !columns || leading < (int64_t)rows) return INVALID_VALUE;
  *out = new Layout{type, rows, columns, leading};
  return SUCCESS;
}
API Status cublasLtMatrixLayoutDestroy(void* layout) { delete (Layout*)layout; return SUCCESS; }
API Status cublasLtMatmulAlgoGetHeuristic(void* handle, void* description, void* w, void* x, void* c, void* y, void* preference, int asked, Choice* out, int* count) {
  const auto& d = *(Description*)description;
  const auto &a = *(Layout*)w, &b = *(Layout*)x, &e = *(Layout*)y;
  const auto& p = *(Preference*)preference;
  if (!handle || asked != 1) return INVALID_VALUE;
  *count = 0;
  const char* const text = getenv("EMU_CUBLASLT");
  if (text && !strcmp(text, "refuse")) return NOT_SUPPORTED;
  check(d.compute == COMPUTE_32F && d.scale == R_32F && d.transposed_a == 1, "another product than W transposed times x in f32");
  check(a.type == R_16BF && b.type == R_16BF && e.type == R_32F && c == y, "other types than bf16 to f32");
  check(a.rows == b.rows && a.columns == e.rows && b.columns == e.columns, "shapes that are no product");
  check(a.leading == (int64_t)a.rows && b.leading == (int64_t)b.rows, "rows of the weights or of x with gaps");
  for (uint32_t alignment : p.alignment) check(alignment <= ALIGNMENT, "an alignment that the matrices do not have");
  if (p.workspace < WORKSPACE) return NOT_SUPPORTED;
  *out = Choice{{MAGIC, a.columns, b.columns, a.rows, (uint64_t)e.leading, WORKSPACE, {}}, WORKSPACE, SUCCESS, 1.f, {}};
  *count = 1;
  return SUCCESS;
}
API Status cublasLtMatmul(void* handle, void* description, const void* alpha, const void* w, void* w_layout, const void* x, void* x_layout, const void* beta, const void* c, void* c_layout, void* y, void* y_layout, const Algorithm* algorithm, void* workspace, size_t workspace_bytes, void* stream) {
  const auto &a = *(Layout*)w_layout, &b = *(Layout*)x_layout, &e = *(Layout*)y_layout;
  check(handle && description && c == y && c_layout == y_layout, "C is not y");
  check(*(const float*)alpha == 1.f && *(const float*)beta == 0.f, "factors other than 1 and 0");
  check(algorithm->magic == MAGIC, "an algorithm that was not chosen");
  check(algorithm->m == a.columns && algorithm->n == b.columns && algorithm->k == a.rows && algorithm->leading == (uint64_t)e.leading, "an algorithm that was chosen for another shape");
  for (const void* p : {w, x, (const void*)y}) check((uint64_t)p % ALIGNMENT == 0, "a matrix that begins elsewhere than was said");
  check(workspace_bytes >= algorithm->workspace, "less workspace than the algorithm takes");
  auto* const need = (void (*)(uint64_t, size_t, const char*))of_the_driver("emulation_need");
  need((uint64_t)workspace, workspace_bytes, "the workspace of a product");
  auto* const give = (int (*)(void*, void (*)(void*), void*))of_the_driver("emulation_give");
  return give(stream, multiply, new Product{(const uint16_t*)w, (const uint16_t*)x, (float*)y, a.columns, b.columns, a.rows, (uint64_t)e.leading});
}

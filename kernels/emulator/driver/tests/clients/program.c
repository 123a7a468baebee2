// A client of the CUDA driver API, written against NVIDIA's documentation alone. It declares what it needs, links with
// -lcuda, and ends with 1 at the first thing that is not as documented.
#include <dlfcn.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int CUresult;
typedef int CUdevice;
typedef uint64_t CUdeviceptr;
typedef struct CUctx_st *CUcontext;
typedef struct CUmod_st *CUmodule;
typedef struct CUfunc_st *CUfunction;
typedef struct CUstream_st *CUstream;
typedef struct CUevent_st *CUevent;
typedef struct CUgraph_st *CUgraph;
typedef struct CUgraphExec_st *CUgraphExec;

extern CUresult cuInit(unsigned);
extern CUresult cuDriverGetVersion(int *);
extern CUresult cuDeviceGetCount(int *);
extern CUresult cuDeviceGet(CUdevice *, int);
extern CUresult cuDeviceGetName(char *, int, CUdevice);
extern CUresult cuDeviceGetAttribute(int *, int, CUdevice);
extern CUresult cuCtxCreate_v2(CUcontext *, unsigned, CUdevice);
extern CUresult cuCtxDestroy_v2(CUcontext);
extern CUresult cuCtxSynchronize(void);
extern CUresult cuModuleLoadDataEx(CUmodule *, const void *, unsigned, int *, void **);
extern CUresult cuModuleGetFunction(CUfunction *, CUmodule, const char *);
extern CUresult cuModuleGetGlobal_v2(CUdeviceptr *, size_t *, CUmodule, const char *);
extern CUresult cuModuleUnload(CUmodule);
extern CUresult cuFuncGetAttribute(int *, int, CUfunction);
extern CUresult cuMemAlloc_v2(CUdeviceptr *, size_t);
extern CUresult cuMemFree_v2(CUdeviceptr);
extern CUresult cuMemHostAlloc(void **, size_t, unsigned);
extern CUresult cuMemFreeHost(void *);
extern CUresult cuMemcpyHtoD_v2(CUdeviceptr, const void *, size_t);
extern CUresult cuMemcpyDtoH_v2(void *, CUdeviceptr, size_t);
extern CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr, const void *, size_t, CUstream);
extern CUresult cuMemcpyDtoHAsync_v2(void *, CUdeviceptr, size_t, CUstream);
extern CUresult cuMemsetD32_v2(CUdeviceptr, unsigned, size_t);
extern CUresult cuLaunchKernel(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream,
                               void **, void **);
extern CUresult cuStreamCreate(CUstream *, unsigned);
extern CUresult cuStreamSynchronize(CUstream);
extern CUresult cuStreamWaitEvent(CUstream, CUevent, unsigned);
extern CUresult cuStreamDestroy_v2(CUstream);
extern CUresult cuStreamBeginCapture_v2(CUstream, int);
extern CUresult cuStreamEndCapture(CUstream, CUgraph *);
extern CUresult cuEventCreate(CUevent *, unsigned);
extern CUresult cuEventRecord(CUevent, CUstream);
extern CUresult cuEventSynchronize(CUevent);
extern CUresult cuEventElapsedTime(float *, CUevent, CUevent);
extern CUresult cuEventDestroy_v2(CUevent);
extern CUresult cuGraphInstantiateWithFlags(CUgraphExec *, CUgraph, unsigned long long);
extern CUresult cuGraphLaunch(CUgraphExec, CUstream);
extern CUresult cuGraphExecDestroy(CUgraphExec);
extern CUresult cuGraphDestroy(CUgraph);
extern CUresult cuGetErrorName(CUresult, const char **);
extern CUresult cuGetProcAddress_v2(const char *, void **, int, uint64_t, int *);

static void expect(CUresult found, CUresult wanted, const char *what, int line) {
    const char *name = "?";
    if (found == wanted) return;
    cuGetErrorName(found, &name);
    printf("line %d: %s gave %d (%s), not %d\n", line, what, found, name, wanted);
    exit(1);
}
#define OK(call) expect((call), 0, #call, __LINE__)
#define GIVES(code, call) expect((call), (code), #call, __LINE__)
#define CHECK(condition)                                                 \
    do {                                                                 \
        if (!(condition)) {                                              \
            printf("line %d: not so: %s\n", __LINE__, #condition);       \
            exit(1);                                                     \
        }                                                                \
    } while (0)

// y[i] = scale * x[i] + y[i], where `scale` is a variable of the module.
static const char *const PTX =
    ".version 7.0\n.target sm_80\n.address_size 64\n"
    ".visible .global .align 4 .f32 scale = 0f40000000;\n"
    ".visible .entry axpy(.param .u64 x, .param .u64 y, .param .u32 n)\n"
    "{\n"
    "  .reg .pred %p<2>; .reg .b32 %r<6>; .reg .f32 %f<4>; .reg .b64 %rd<8>;\n"
    "  ld.param.u64 %rd1, [x]; ld.param.u64 %rd2, [y]; ld.param.u32 %r1, [n];\n"
    "  mov.u32 %r2, %ctaid.x; mov.u32 %r3, %ntid.x; mov.u32 %r4, %tid.x; mad.lo.s32 %r5, %r2, %r3, %r4;\n"
    "  setp.ge.s32 %p1, %r5, %r1;\n"
    "  @%p1 bra END;\n"
    "  mul.wide.s32 %rd3, %r5, 4; add.s64 %rd4, %rd1, %rd3; add.s64 %rd5, %rd2, %rd3;\n"
    "  ld.global.f32 %f1, [%rd4]; ld.global.f32 %f2, [%rd5]; ld.global.f32 %f3, [scale];\n"
    "  fma.rn.f32 %f2, %f1, %f3, %f2;\n"
    "  st.global.f32 [%rd5], %f2;\n"
    "END:\n"
    "  ret;\n"
    "}\n";

enum { N = 1000 };

int main(void) {
    int count, version, major, minor, value;
    char name[64];
    CUdevice device;
    CUcontext context;
    GIVES(3, cuDeviceGetCount(&count));  // CUDA_ERROR_NOT_INITIALIZED
    OK(cuInit(0));
    OK(cuDriverGetVersion(&version));
    CHECK(version >= 12000);
    OK(cuDeviceGetCount(&count));
    CHECK(count == 1);
    OK(cuDeviceGet(&device, 0));
    GIVES(101, cuDeviceGet(&device, 1));
    OK(cuDeviceGet(&device, 0));
    OK(cuDeviceGetName(name, sizeof name, device));
    OK(cuDeviceGetAttribute(&major, 75, device));
    OK(cuDeviceGetAttribute(&minor, 76, device));
    GIVES(201, cuCtxSynchronize());  // no context is current
    OK(cuCtxCreate_v2(&context, 0, device));

    // A module, with a log of what is wrong with another one.
    CUmodule module;
    CUfunction axpy;
    char log[200] = "";
    int options[] = {5, 6};  // CU_JIT_ERROR_LOG_BUFFER and its size
    void *values[] = {log, (void *)(uintptr_t)sizeof log};
    GIVES(218, cuModuleLoadDataEx(&module, ".version 7.0\n.target sm_80\nnonsense\n", 2, options, values));
    CHECK(strlen(log) > 0 && strstr(log, "nonsense"));
    OK(cuModuleLoadDataEx(&module, PTX, 0, NULL, NULL));
    OK(cuModuleGetFunction(&axpy, module, "axpy"));
    GIVES(500, cuModuleGetFunction(&axpy, module, "axpz"));
    OK(cuModuleGetFunction(&axpy, module, "axpy"));
    OK(cuFuncGetAttribute(&value, 0, axpy));
    CHECK(value == 1024);

    // Synchronous copies, a launch by pointers to arguments.
    float x[N], y[N];
    for (int i = 0; i < N; i++) x[i] = (float)i, y[i] = 1;
    CUdeviceptr dx, dy, scale;
    size_t bytes;
    OK(cuMemAlloc_v2(&dx, sizeof x));
    OK(cuMemAlloc_v2(&dy, sizeof y));
    OK(cuMemcpyHtoD_v2(dx, x, sizeof x));
    OK(cuMemcpyHtoD_v2(dy, y, sizeof y));
    unsigned n = N;
    void *arguments[] = {&dx, &dy, &n};
    OK(cuLaunchKernel(axpy, 8, 1, 1, 128, 1, 1, 0, NULL, arguments, NULL));
    OK(cuMemcpyDtoH_v2(y, dy, sizeof y));
    for (int i = 0; i < N; i++) CHECK(y[i] == 2 * (float)i + 1);

    // A variable of the module, a launch by a buffer of arguments.
    OK(cuModuleGetGlobal_v2(&scale, &bytes, module, "scale"));
    CHECK(bytes == 4);
    float minus = -2;
    OK(cuMemcpyHtoD_v2(scale, &minus, 4));
    struct {
        CUdeviceptr x, y;
        unsigned n;
    } packed = {dx, dy, N};
    size_t size = 20;
    void *extra[] = {(void *)1, &packed, (void *)2, &size, (void *)0};
    OK(cuLaunchKernel(axpy, 8, 1, 1, 128, 1, 1, 0, NULL, NULL, extra));
    OK(cuCtxSynchronize());
    OK(cuMemcpyDtoH_v2(y, dy, sizeof y));
    for (int i = 0; i < N; i++) CHECK(y[i] == 1);
    GIVES(1, cuLaunchKernel(axpy, 8, 1, 1, 2048, 1, 1, 0, NULL, NULL, extra));

    // Two streams, ordered by an event; page-locked memory; times.
    CUstream one, two;
    CUevent begin, middle, end;
    float *pinned, time = -1;
    OK(cuStreamCreate(&one, 1));
    OK(cuStreamCreate(&two, 1));
    OK(cuEventCreate(&begin, 0));
    OK(cuEventCreate(&middle, 0));
    OK(cuEventCreate(&end, 0));
    GIVES(400, cuEventElapsedTime(&time, begin, end));  // never recorded
    OK(cuMemHostAlloc((void **)&pinned, sizeof x, 0));
    for (int i = 0; i < N; i++) pinned[i] = 3;
    OK(cuEventRecord(begin, one));
    OK(cuMemcpyHtoDAsync_v2(dx, pinned, sizeof x, one));
    OK(cuEventRecord(middle, one));
    OK(cuStreamWaitEvent(two, middle, 0));
    OK(cuLaunchKernel(axpy, 8, 1, 1, 128, 1, 1, 0, two, arguments, NULL));
    OK(cuMemcpyDtoHAsync_v2(pinned, dy, sizeof y, two));
    OK(cuEventRecord(end, two));
    OK(cuEventSynchronize(end));
    for (int i = 0; i < N; i++) CHECK(pinned[i] == -5);
    OK(cuEventElapsedTime(&time, begin, end));
    CHECK(time >= 0);

    // A capture, launched twice.
    CUgraph graph;
    CUgraphExec exec;
    OK(cuMemsetD32_v2(dy, 0, N));
    OK(cuStreamBeginCapture_v2(one, 1));
    OK(cuLaunchKernel(axpy, 8, 1, 1, 128, 1, 1, 0, one, arguments, NULL));
    OK(cuMemcpyDtoHAsync_v2(pinned, dy, sizeof y, one));
    GIVES(900, cuStreamSynchronize(one));
    GIVES(901, cuStreamEndCapture(one, &graph));
    OK(cuStreamBeginCapture_v2(one, 1));
    OK(cuLaunchKernel(axpy, 8, 1, 1, 128, 1, 1, 0, one, arguments, NULL));
    OK(cuMemcpyDtoHAsync_v2(pinned, dy, sizeof y, one));
    OK(cuStreamEndCapture(one, &graph));
    OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
    OK(cuGraphDestroy(graph));
    OK(cuGraphLaunch(exec, one));
    OK(cuGraphLaunch(exec, one));
    OK(cuStreamSynchronize(one));
    for (int i = 0; i < N; i++) CHECK(pinned[i] == -12);
    OK(cuGraphExecDestroy(exec));
    GIVES(1, cuGraphLaunch(NULL, one));

    // Functions by name.
    CUresult (*allocate)(CUdeviceptr *, size_t) = NULL;
    int status;
    OK(cuGetProcAddress_v2("cuMemAlloc", (void **)&allocate, 12000, 0, &status));
    CHECK(status == 0);
    void *library = dlopen("libcuda.so.1", RTLD_NOW), *same = library ? dlsym(library, "cuMemAlloc_v2") : NULL;
    CHECK(same && memcmp(&same, &allocate, sizeof same) == 0);
    OK(cuGetProcAddress_v2("cuNoSuchFunction", (void **)&allocate, 12000, 0, &status));
    CHECK(status == 1 && !allocate);

    // A kernel that reads where nothing is: from then on each call gives the error, and the process gets no sound context.
    dx = 0;
    OK(cuLaunchKernel(axpy, 8, 1, 1, 128, 1, 1, 0, one, arguments, NULL));
    GIVES(700, cuStreamSynchronize(one));
    GIVES(700, cuMemAlloc_v2(&dx, 16));
    GIVES(700, cuMemcpyDtoH_v2(y, dy, sizeof y));
    GIVES(700, cuEventDestroy_v2(begin));
    GIVES(700, cuCtxSynchronize());
    OK(cuCtxDestroy_v2(context));
    GIVES(700, cuCtxCreate_v2(&context, 0, device));
    printf("all of it works on a device of capability %d.%d\n", major, minor);
    return 0;
}

// A twin of what rlvr calls in NCCL: ranks are processes, or threads, of one machine, and exchange through shared memory.
//
// A group of calls is done when it ends. Strict where NCCL would hang or give wrong numbers: all ranks make the same
// calls in the same order, or each is told what each did; a communicator keeps to one stream and to device memory.
// Sums go around from the rank after the root to the root, and are rounded to the type at every one, as on a ring.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "memory.h"

extern "C" int cuCtxGetDevice(int *device);

namespace {

using twin::need;

// ncclResult_t
enum Status { success = 0, system_error = 2, invalid_argument = 4, invalid_usage = 5, remote_error = 6 };
enum Type { f32 = 7, bf16 = 9 };  // ncclDataType_t
enum Kind : int { reduce, broadcast };
using Handle = void *;

constexpr int most_ranks = 64;
// NCCL would wait for ever; the driver of a test should hear who is not there.
constexpr auto patience = std::chrono::seconds(60);

struct Id {
    char name[128];
};

// In memory that all ranks share.
struct Control {
    struct {
        std::atomic<int> device;         // 1 and up
        std::atomic<uint64_t> at;        // how many times it has met the others
        std::atomic<bool> gone;
    } ranks[most_ranks];
};

struct Call {
    int kind, type, op, root;
    uint64_t count;
    uint64_t data;  // where in the outbox, behind the calls
    bool same(const Call &other) const {
        return kind == other.kind && type == other.type && op == other.op && root == other.root && count == other.count;
    }
};

struct Asked {
    Call call;
    const void *from;
    void *to;
};

struct Comm {
    int rank, size;
    Control *control;
    int outboxes[most_ranks];  // files
    Handle stream = nullptr;
    bool streamed = false;
    uint64_t met = 0;
    std::vector<Asked> asked;  // since the group began
};

thread_local int depth;
thread_local Status failed;  // within the group
thread_local std::vector<Comm *> in_group;
thread_local char last[2000];

__attribute__((format(printf, 2, 3))) Status refuse(Status status, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(last, sizeof last, format, arguments);
    va_end(arguments);
    std::fprintf(stderr, "rlvr twin: NCCL: %s\n", last);
    return status;
}

size_t width(int type) { return type == f32 ? 4 : 2; }

float value(const void *at, uint64_t i, int type) {
    if (type == f32) return ((const float *)at)[i];
    const uint32_t bits = uint32_t(((const uint16_t *)at)[i]) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return wide;
}

void store(void *at, uint64_t i, int type, float wide) {
    if (type == f32) {
        ((float *)at)[i] = wide;
        return;
    }
    uint32_t bits;
    std::memcpy(&bits, &wide, sizeof bits);
    ((uint16_t *)at)[i] = wide != wide ? 0x7fff : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float rounded(float wide, int type) {
    uint16_t half;
    if (type == f32) return wide;
    store(&half, 0, type, wide);
    return value(&half, 0, type);
}

std::string said(const Call &call) {
    char text[160];
    std::snprintf(text, sizeof text, "%s of %llu %s, root %d", call.kind == reduce ? "ncclReduce" : "ncclBroadcast",
                  (unsigned long long)call.count, call.type == f32 ? "f32" : "bf16", call.root);
    return text;
}

// Until all ranks have come here as often as this one.
Status meet(Comm &comm) {
    const uint64_t now = ++comm.met;
    comm.control->ranks[comm.rank].at = now;
    const auto start = std::chrono::steady_clock::now();
    for (int rank = 0; rank < comm.size; rank++) {
        const auto &other = comm.control->ranks[rank];
        while (other.at < now) {
            if (other.gone) return refuse(remote_error, "rank %d has left the communicator that rank %d waits in", rank, comm.rank);
            if (std::chrono::steady_clock::now() - start > patience)
                return refuse(invalid_usage, "rank %d waits for rank %d, which makes no call (%s)", comm.rank, rank,
                              comm.asked.empty() ? "at the start" : said(comm.asked[0].call).c_str());
            std::this_thread::sleep_for(std::chrono::microseconds(20));
        }
    }
    return success;
}

// What a rank gives to the others.
struct Outbox {
    char *start = nullptr;
    size_t bytes = 0;
    Outbox(int file, size_t grow) {
        struct stat found;
        if (grow) {
            if (ftruncate(file, grow)) return;
            bytes = grow;
        } else {
            if (fstat(file, &found)) return;
            bytes = found.st_size;
        }
        void *mapped = mmap(nullptr, bytes, PROT_READ | (grow ? PROT_WRITE : 0), MAP_SHARED, file, 0);
        if (mapped != MAP_FAILED) start = (char *)mapped;
    }
    Outbox(Outbox &&other) : start(other.start), bytes(other.bytes) { other.start = nullptr; }
    ~Outbox() {
        if (start) munmap(start, bytes);
    }
    uint64_t count() const { return *(const uint64_t *)start; }
    const Call *calls() const { return (const Call *)(start + sizeof(uint64_t)); }
};

Status exchange(Comm &comm) {
    size_t bytes = sizeof(uint64_t) + comm.asked.size() * sizeof(Call);
    for (Asked &asked : comm.asked) {
        asked.call.data = bytes;
        const bool gives = asked.call.kind == reduce || asked.call.root == comm.rank;
        bytes += gives ? asked.call.count * width(asked.call.type) : 0;
    }
    {
        Outbox own(comm.outboxes[comm.rank], bytes);
        if (!own.start) return refuse(system_error, "no shared memory for %zu bytes", bytes);
        *(uint64_t *)own.start = comm.asked.size();
        auto *calls = (Call *)(own.start + sizeof(uint64_t));
        for (const Asked &asked : comm.asked) {
            *calls++ = asked.call;
            if (asked.call.kind == reduce || asked.call.root == comm.rank)
                std::memcpy(own.start + asked.call.data, asked.from, asked.call.count * width(asked.call.type));
        }
    }
    if (const Status status = meet(comm)) return status;
    std::vector<Outbox> all;
    for (int rank = 0; rank < comm.size; rank++) {
        all.emplace_back(comm.outboxes[rank], 0);
        if (!all.back().start) return refuse(system_error, "the memory of rank %d cannot be read", rank);
    }
    Status status = success;
    const Outbox &own = all[comm.rank];
    for (uint64_t i = 0; i < own.count() && !status; i++)
        for (int rank = 0; rank < comm.size && !status; rank++) {
            const Outbox &other = all[rank];
            if (i < other.count() && other.calls()[i].same(own.calls()[i])) continue;
            status = refuse(invalid_usage, "call %llu of a group differs, and NCCL would hang: rank %d: %s; rank %d: %s",
                            (unsigned long long)i, comm.rank, said(own.calls()[i]).c_str(), rank,
                            i < other.count() ? said(other.calls()[i]).c_str() : "none");
        }
    for (int rank = 0; rank < comm.size && !status; rank++)
        if (all[rank].count() != own.count())
            status = refuse(invalid_usage, "groups differ, and NCCL would hang: rank %d makes %llu calls, rank %d makes %llu", comm.rank,
                            (unsigned long long)own.count(), rank, (unsigned long long)all[rank].count());
    for (const Asked &asked : comm.asked) {
        const Call &call = asked.call;
        const size_t i = &asked - comm.asked.data();
        const auto data = [&](int rank) { return all[rank].start + all[rank].calls()[i].data; };
        if (status) break;
        if (call.kind == broadcast && call.root != comm.rank) std::memcpy(asked.to, data(call.root), call.count * width(call.type));
        if (call.kind == reduce && call.root == comm.rank)
            for (uint64_t e = 0; e < call.count; e++) {
                float sum = value(data((call.root + 1) % comm.size), e, call.type);
                for (int step = 2; step <= comm.size; step++)
                    sum = rounded(sum + value(data((call.root + step) % comm.size), e, call.type), call.type);
                store(asked.to, e, call.type, sum);
            }
    }
    const Status met = meet(comm);  // nobody writes while another reads
    return status ? status : met;
}

Status end_group() {
    Status status = failed;
    failed = success;
    for (Comm *comm : in_group) {
        if (!status) status = exchange(*comm);
        comm->asked.clear();
    }
    in_group.clear();
    return status;
}

Status ask(Comm *comm, const Call &call, const void *from, void *to, Handle stream) {
    if (!comm || call.root < 0 || call.root >= comm->size) return refuse(invalid_argument, "no such communicator or root");
    if (call.type != f32 && call.type != bf16) return refuse(invalid_argument, "type %d is not known to the twin", call.type);
    if (call.kind == reduce && call.op != 0) return refuse(invalid_argument, "operation %d is not known to the twin", call.op);
    if (comm->streamed && comm->stream != stream) return refuse(invalid_usage, "rank %d: %s in another stream than before", comm->rank, said(call).c_str());
    comm->stream = stream, comm->streamed = true;
    const size_t bytes = call.count * width(call.type);
    const bool is_root = call.root == comm->rank;
    if (call.kind == reduce || is_root) need(from, bytes, said(call).c_str(), "sendbuff");
    if (call.kind == broadcast || is_root) need(to, bytes, said(call).c_str(), "recvbuff");
    if (comm->asked.empty()) in_group.push_back(comm);
    comm->asked.push_back({call, from, to});
    return depth ? success : end_group();
}

Status grouped(Status status) {
    if (depth && status) failed = status;
    return status;
}

int open_shared(const std::string &name) { return shm_open(name.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600); }

}  // namespace

TWIN_EXPORT int ncclGetVersion(int *version) { return *version = 22809, success; }
TWIN_EXPORT int ncclGetUniqueId(Id *id) {
    unsigned long long random;
    if (getrandom(&random, sizeof random, 0) != sizeof random) return system_error;
    std::memset(id, 0, sizeof *id);
    std::snprintf(id->name, sizeof id->name, "/rlvr-twin-nccl-%016llx", random);
    return success;
}
TWIN_EXPORT int ncclCommInitRank(Comm **made, int size, Id id, int rank) {
    int device;
    if (cuCtxGetDevice(&device)) return refuse(invalid_usage, "rank %d has no context", rank);
    if (size < 1 || size > most_ranks || rank < 0 || rank >= size) return refuse(invalid_argument, "rank %d of %d", rank, size);
    const std::string name(id.name);
    const int file = open_shared(name);
    if (file < 0 || ftruncate(file, sizeof(Control))) return refuse(system_error, "no shared memory %s", name.c_str());
    void *mapped = mmap(nullptr, sizeof(Control), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (mapped == MAP_FAILED) return refuse(system_error, "no shared memory %s", name.c_str());
    auto *comm = new Comm{rank, size, (Control *)mapped, {}};
    if (comm->control->ranks[rank].device.exchange(device + 1)) return refuse(invalid_usage, "two ranks are rank %d", rank);
    for (int other = 0; other < size; other++) {
        comm->outboxes[other] = open_shared(name + "-" + std::to_string(other));
        if (comm->outboxes[other] < 0) return refuse(system_error, "no shared memory for rank %d", other);
    }
    if (const Status status = meet(*comm)) return status;
    if (rank == 0) {  // all have opened it, and nothing stays behind
        shm_unlink(name.c_str());
        for (int other = 0; other < size; other++) shm_unlink((name + "-" + std::to_string(other)).c_str());
    }
    for (int other = 0; other < size; other++)
        if (other != rank && comm->control->ranks[other].device == device + 1)
            return refuse(invalid_usage, "ranks %d and %d are both on device %d", rank, other, device);
    return *made = comm, success;
}
TWIN_EXPORT int ncclCommAbort(Comm *comm) {
    if (!comm) return invalid_argument;
    comm->control->ranks[comm->rank].gone = true;
    munmap(comm->control, sizeof(Control));
    for (int rank = 0; rank < comm->size; rank++) close(comm->outboxes[rank]);
    return delete comm, success;
}
TWIN_EXPORT int ncclCommGetAsyncError(Comm *, int *status) { return *status = success, success; }
TWIN_EXPORT int ncclGroupStart() { return depth++, success; }
TWIN_EXPORT int ncclGroupEnd() {
    if (depth == 0) return refuse(invalid_usage, "a group ends that has not begun");
    return --depth ? success : end_group();
}
TWIN_EXPORT int ncclReduce(const void *from, void *to, size_t count, int type, int op, int root, Comm *comm, Handle stream) {
    return grouped(ask(comm, {reduce, type, op, root, count, 0}, from, to, stream));
}
TWIN_EXPORT int ncclBroadcast(const void *from, void *to, size_t count, int type, int root, Comm *comm, Handle stream) {
    return grouped(ask(comm, {broadcast, type, 0, root, count, 0}, from, to, stream));
}
TWIN_EXPORT const char *ncclGetErrorString(int status) {
    switch (status) {
        case success: return "no error";
        case system_error: return "system error";
        case invalid_argument: return "invalid argument";
        case invalid_usage: return "invalid usage";
        case remote_error: return "a remote process is gone";
    }
    return "unknown error";
}
TWIN_EXPORT const char *ncclGetLastError(Comm *) { return last; }

// Which kernels run, and on how many threads. What a call computes does not depend on the number of threads: every
// number of a result is summed by one thread, in an order that the plan alone decides.
#include "abi.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>
#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#else
static int getpid() { return 0; }
#endif

#if defined(LOWRANK_V2)
extern "C" const LowrankKernels *lowrank_kernels_v2(void);
#endif
#if defined(LOWRANK_V3)
extern "C" const LowrankKernels *lowrank_kernels_v3(void);
#endif
#if defined(LOWRANK_V4)
extern "C" const LowrankKernels *lowrank_kernels_v4(void);
#endif
#if defined(LOWRANK_GENERIC)
extern "C" const LowrankKernels *lowrank_kernels_generic(void);
#endif

namespace {

constexpr int64_t LONG = 256;    // a segment with more tokens than this is shared out among threads
constexpr int64_t COLUMNS = 256; // columns of a long segment's gradient that one thread takes

struct Level {
    const char *name;
    const LowrankKernels *kernels;
};

std::vector<Level> levels() {
    std::vector<Level> found;
#if defined(LOWRANK_V4)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        found.push_back({"x86-64-v4", lowrank_kernels_v4()});
#endif
#if defined(LOWRANK_V3)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2"))
        found.push_back({"x86-64-v3", lowrank_kernels_v3()});
#endif
#if defined(LOWRANK_V2)
    if (__builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt"))
        found.push_back({"x86-64-v2", lowrank_kernels_v2()});
#endif
#if defined(LOWRANK_GENERIC)
    found.push_back({"generic", lowrank_kernels_generic()});
#endif
    return found;
}

Level &level() {
    static Level chosen = levels().empty() ? Level{nullptr, nullptr} : levels().front();
    return chosen;
}

// Threads that wait for work. A process forked from one with threads has none of them: it starts its own.
class Pool {
  public:
    template <class Work> void run(int64_t threads, const Work &work) {
        if (threads <= 1) return work();
        std::lock_guard<std::mutex> one_call(calls_);
        {
            std::lock_guard<std::mutex> hold(lock_);
            try {
                for (; (int64_t)count_ < threads - 1; count_++) std::thread(&Pool::wait, this, count_, round_).detach();
            } catch (const std::system_error &) {
                // The system gives no more threads: those there are share the work.
            }
            work_ = [](const void *told) { (*(const Work *)told)(); };
            told_ = &work;
            wanted_ = left_ = std::min(threads - 1, (int64_t)count_);
            round_++;
        }
        start_.notify_all();
        work();
        std::unique_lock<std::mutex> hold(lock_);
        done_.wait(hold, [&] { return left_ == 0; });
    }

    // The pool of this process; one that was forked over is left alone, as its locks may be held for ever.
    static Pool &here() {
        static std::atomic<Pool *> pool{nullptr};
        static std::atomic<int> owner{0};
        if (owner.load() != getpid()) {
            static std::mutex making;
            std::lock_guard<std::mutex> hold(making);
            if (owner.load() != getpid()) {
                pool.store(new Pool);
                owner.store(getpid());
            }
        }
        return *pool.load();
    }

  private:
    void wait(size_t index, int64_t seen) {
        std::unique_lock<std::mutex> hold(lock_);
        for (;;) {
            start_.wait(hold, [&] { return round_ != seen; });
            seen = round_;
            if ((int64_t)index >= wanted_) continue;
            auto work = work_;
            auto told = told_;
            hold.unlock();
            work(told);
            hold.lock();
            if (--left_ == 0) done_.notify_one();
        }
    }

    std::mutex calls_, lock_;
    std::condition_variable start_, done_;
    void (*work_)(const void *) = nullptr;
    const void *told_ = nullptr;
    size_t count_ = 0;
    int64_t wanted_ = 0, left_ = 0, round_ = 0;
};

// Give every item to some thread: `work` gets ranges of items, about a sixteenth of a thread's share at a time.
template <class Work> void share(const LowrankCall *call, int64_t items, const LowrankKernels &k, const Work &work) {
    int64_t threads = call->threads < items ? call->threads : items;
    if (threads <= 1) {
        work(0, items);
        return k.fence();
    }
    std::atomic<int64_t> next{0};
    const int64_t grain = items / (16 * threads) + 1;
    Pool::here().run(threads, [&] {
        for (;;) {
            const int64_t first = next.fetch_add(grain);
            if (first >= items) break;
            work(first, first + grain < items ? first + grain : items);
        }
        k.fence();
    });
}

struct Item {
    int64_t segment, start, end; // segment -1: tokens without an adapter
    bool whole;                  // of every segment all tokens
};

// Segments of more than `most` tokens in parts; shorter ones together until they fill a block; and the base-only tokens.
std::vector<Item> token_items(const LowrankCall *call, int64_t most) {
    std::vector<Item> items;
    items.reserve(call->n_active + call->tokens / LOWRANK_BLOCK + 1);
    for (int64_t t = 0; t < call->n_base; t += LOWRANK_BLOCK)
        items.push_back({-1, t, std::min(t + LOWRANK_BLOCK, call->n_base), false});
    for (int64_t s = 0; s < call->n_active;) {
        const int64_t first = s, start = call->offsets[s], end = call->offsets[s + 1];
        if (end - start > most) {
            for (int64_t t = start; t < end; t += LOWRANK_BLOCK)
                items.push_back({s, t, std::min(t + LOWRANK_BLOCK, end), false});
            s++;
            continue;
        }
        while (s < call->n_active && call->offsets[s] - start < LOWRANK_BLOCK &&
               call->offsets[s + 1] - call->offsets[s] <= most)
            s++;
        items.push_back({first, start, call->offsets[s], true});
    }
    return items;
}

} // namespace

extern "C" {

int64_t lowrank_abi(void) { return LOWRANK_ABI; }

int64_t lowrank_call_bytes(void) { return sizeof(LowrankCall); }

const char *lowrank_isa(void) { return level().name; }

int64_t lowrank_use_isa(const char *name) {
    for (const Level &each : levels())
        if (!std::strcmp(each.name, name)) {
            level() = each;
            return 0;
        }
    return 1;
}

void lowrank_forward(const LowrankCall *call) {
    const LowrankKernels &k = level().kernels[call->dtype];
    const std::vector<Item> items = token_items(call, LOWRANK_BLOCK);
    share(call, (int64_t)items.size(), k, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; i++) {
            const Item &item = items[i];
            if (item.segment < 0) k.plain(call, item.start, item.end, false);
            else k.forward(call, item.segment, item.start, item.end);
        }
    });
}

void lowrank_backward(const LowrankCall *call) {
    const LowrankKernels &k = level().kernels[call->dtype];
    const bool own_a = call->da && call->a_stride, own_b = call->db && call->b_stride;
    const bool shared_a = call->da && !call->a_stride, shared_b = call->db && !call->b_stride;
    // One thread takes every segment whole, while its rows are in the cache.
    const int64_t most = call->threads > 1 ? LONG : call->tokens;
    const std::vector<Item> items = token_items(call, most);
    share(call, (int64_t)items.size(), k, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; i++) {
            const Item &item = items[i];
            if (item.segment < 0) {
                k.plain(call, item.start, item.end, true);
                continue;
            }
            k.backward(call, item.segment, item.start, item.end, item.whole);
        }
    });
    // What sums over more tokens than one thread was given: long segments, and factors that all users share.
    struct Later {
        int what; // 0 A, 1 B, 2 core and scale
        int64_t segment, row, start, end, first, last;
    };
    std::vector<Later> later;
    auto columns = [&](int which, int64_t segment, int64_t row, int64_t start, int64_t end) {
        const int64_t d = which ? call->d_out : call->d_in;
        for (int64_t c = 0; c < d; c += COLUMNS)
            later.push_back({which, segment, row, start, end, c, c + COLUMNS < d ? c + COLUMNS : d});
    };
    for (int64_t s = 0; s < call->n_active; s++) {
        const int64_t start = call->offsets[s], end = call->offsets[s + 1];
        if (end - start <= most) continue;
        const int64_t row = call->rows ? s : call->users[s];
        if (own_a) columns(0, s, row, start, end);
        if (own_b) columns(1, s, row, start, end);
        if (call->dcore || call->dscale) later.push_back({2, s, row, start, end, 0, 0});
    }
    if (shared_a) columns(0, 0, 0, call->n_base, call->tokens);
    if (shared_b) columns(1, 0, 0, call->n_base, call->tokens);
    share(call, (int64_t)later.size(), k, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; i++) {
            const Later &each = later[i];
            if (each.what == 2) k.narrow(call, each.segment, each.start, each.end);
            else k.factor(call, each.what, each.row, call->accumulate, each.start, each.end, each.first, each.last);
        }
    });
    if (call->rows || call->accumulate) return;
    std::vector<int64_t> missing;
    for (int64_t user = 0, s = 0; user < call->n_users; user++) {
        if (s < call->n_active && call->users[s] == user) s++;
        else missing.push_back(user);
    }
    share(call, (int64_t)missing.size(), k, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; i++) k.absent(call, missing[i]);
    });
}
}

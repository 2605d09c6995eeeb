// Sparse decode. A token gathers the decoder rows of its features, one source layer after the other
// and in panels of columns, so that a panel's slice of the source's rows (24,576 rows of 128
// columns: 12.6 MB) is read from memory once and from the L2 by every token that needs it. By rows,
// as on the CPU, the output would be what is gathered, and added to by many rows at once.
//
// The gather needs the active set by token: a radix sort by (layer, token), 8 bits a pass, which
// is stable, so features stay ascending. A counting sort by whole keys would need a table of 49,152
// counts for each chunk of entries.
#include "backend/cuda/device_code.hpp"

#include "backend/cuda/decode.hpp"

#include <algorithm>

#include "backend/cuda/gather.hpp"

namespace clt::cuda {
namespace {

// ---- the order by token -------------------------------------------------------------------------

constexpr int sort_warps = 8;
constexpr int sort_threads = sort_warps * warp_lanes;
constexpr int digit_bits = 8;
constexpr int digits = 1 << digit_bits;
static_assert(digits == sort_threads, "a thread for each digit");
// A warp ranks its chunk's entries in order: 512 take some microseconds and give 1600 warps work.
constexpr Index chunk_entries = 512;
constexpr int loads_in_flight = 8;

// The row that owns entry i: the last one that starts at or before it.
__device__ Index row_of_entry(const Index* row_start, Index rows, Index i) {
    Index low = 0;
    Index high = rows;
    while (high - low > 1) {
        const Index middle = (low + high) / 2;
        if (row_start[middle] <= i)
            low = middle;
        else
            high = middle;
    }
    return low;
}

// A thread an entry: its key and what its token will need of it, in the order by row.
__global__ void __launch_bounds__(sort_threads)
    expand_entries(EntriesByRow set, std::uint32_t* key, FeatureValue* entry) {
    const Index i = Index{blockIdx.x} * sort_threads + threadIdx.x;
    if (i >= set.entries) return;
    const Index row = row_of_entry(set.row_start, set.layers * set.features, i);
    const Index layer = row / set.features;
    key[i] = static_cast<std::uint32_t>(layer * set.tokens + set.token[i]);
    entry[i] = {static_cast<std::int32_t>(row - layer * set.features), set.value[i]};
}

__device__ int digit_of(std::uint32_t key, int shift) {
    return static_cast<int>((key >> shift) % digits);
}

// A warp counts the digits of its chunk: counts[digits, chunks].
__global__ void __launch_bounds__(sort_threads)
    count_chunk_digits(const std::uint32_t* key, Index entries, int shift, Index chunks,
                       std::uint32_t* counts) {
    using Table = std::uint32_t[digits];
    CLT_SHARED(Table, tables, sort_warps);
    const Index chunk = Index{blockIdx.x} * sort_warps + warp_of_thread();
    if (chunk >= chunks) return;
    std::uint32_t* count = tables[warp_of_thread()];
    for (int digit = lane_of_thread(); digit < digits; digit += warp_lanes) count[digit] = 0;
    __syncwarp();
    const Index end = min(entries, (chunk + 1) * chunk_entries);
    for (Index i = chunk * chunk_entries + lane_of_thread(); i < end; i += warp_lanes)
        atomicAdd(&count[digit_of(key[i], shift)], 1U);
    __syncwarp();
    for (int digit = lane_of_thread(); digit < digits; digit += warp_lanes)
        counts[digit * chunks + chunk] = count[digit];
}

// A block a digit that occurs: its counts become those of the chunks before; totals[digit] is of
// all chunks.
template <int threads>
__global__ void __launch_bounds__(threads)
    scan_digit(Index chunks, std::uint32_t* counts, std::uint32_t* totals) {
    std::uint32_t* count = counts + Index{blockIdx.x} * chunks;
    std::uint32_t before = 0;
    for (Index first = 0; first < chunks; first += threads) {
        const Index chunk = first + threadIdx.x;
        const std::uint32_t own = chunk < chunks ? count[chunk] : 0;
        std::uint32_t total = 0;
        const std::uint32_t below = block_exclusive_sum<threads>(own, total);
        if (chunk < chunks) count[chunk] = before + below;
        before += total;
    }
    if (threadIdx.x == 0) totals[blockIdx.x] = before;
}

// A warp moves its chunk's entries, in order, 32 at a time: an entry goes behind all of smaller
// digits, those of its digit in chunks before, and those before it in the chunk.
__global__ void __launch_bounds__(sort_threads)
    move_chunk(const std::uint32_t* key, const FeatureValue* entry, Index entries, int shift,
               int occurring, Index chunks, const std::uint32_t* counts,
               const std::uint32_t* totals, std::uint32_t* key_out, FeatureValue* entry_out) {
    using Table = std::uint32_t[digits];
    CLT_SHARED(Table, tables, sort_warps);
    CLT_SHARED(std::uint32_t, smaller, digits);
    std::uint32_t all = 0;
    const int own_digit = static_cast<int>(threadIdx.x);
    smaller[own_digit] =
        block_exclusive_sum<sort_threads>(own_digit < occurring ? totals[own_digit] : 0U, all);
    __syncthreads();
    const Index chunk = Index{blockIdx.x} * sort_warps + warp_of_thread();
    if (chunk >= chunks) return;
    const int lane = lane_of_thread();
    std::uint32_t* place = tables[warp_of_thread()];
    for (int digit = lane; digit < occurring; digit += warp_lanes)
        place[digit] = smaller[digit] + counts[digit * chunks + chunk];
    __syncwarp();
    const Index end = min(entries, (chunk + 1) * chunk_entries);
    for (Index first = chunk * chunk_entries; first < end; first += loads_in_flight * warp_lanes) {
        std::uint32_t own_key[loads_in_flight] = {};
        FeatureValue own[loads_in_flight] = {};
#pragma unroll
        for (int u = 0; u < loads_in_flight; ++u) {
            const Index i = first + u * warp_lanes + lane;
            if (i < end) {
                own_key[u] = key[i];
                own[u] = entry[i];
            }
        }
#pragma unroll
        for (int u = 0; u < loads_in_flight; ++u) {
            const bool present = first + u * warp_lanes + lane < end;
            const int digit = present ? digit_of(own_key[u], shift) : digits;
            const unsigned peers = __match_any_sync(all_lanes, digit);
            const int rank = __popc(peers & ((1U << lane) - 1U));
            const std::uint32_t to = present ? place[digit] + static_cast<unsigned>(rank) : 0;
            __syncwarp();
            if (present && rank == 0) place[digit] += static_cast<unsigned>(__popc(peers));
            __syncwarp();
            if (!present) continue;
            key_out[to] = own_key[u];
            entry_out[to] = own[u];
        }
    }
}

// A thread a (layer, token): where its entries start among the sorted keys.
__global__ void __launch_bounds__(sort_threads)
    find_starts(const std::uint32_t* key, Index entries, Index keys, Index* start) {
    const Index wanted = Index{blockIdx.x} * sort_threads + threadIdx.x;
    if (wanted > keys) return;
    Index low = 0;
    Index high = entries;
    while (low < high) {
        const Index middle = (low + high) / 2;
        if (Index{key[middle]} < wanted)
            low = middle + 1;
        else
            high = middle;
    }
    start[wanted] = low;
}

// What order_by_token() keeps in its scratch.
struct SortScratch {
    FeatureValue* entry[2];
    Index* start;
    std::uint32_t* key[2];
    std::uint32_t* counts;
    std::uint32_t* totals;
    std::size_t bytes = 0;

    SortScratch(const EntriesByRow& set, void* scratch) {
        const Index chunks = blocks_for(set.entries, chunk_entries);
        for (FeatureValue*& half : entry) take(half, set.entries, scratch);
        take(start, set.layers * set.tokens + 1, scratch);
        for (std::uint32_t*& half : key) take(half, set.entries, scratch);
        take(counts, digits * chunks, scratch);
        take(totals, digits, scratch);
    }

  private:
    template <class T>
    void take(T*& array, Index n, void* scratch) {
        array = reinterpret_cast<T*>(static_cast<std::byte*>(scratch) + bytes);
        bytes += (static_cast<std::size_t>(n) * sizeof(T) + 15) / 16 * 16;
    }
};

// ---- the gather ---------------------------------------------------------------------------------

constexpr int decode_warps = 8;
constexpr int decode_threads = decode_warps * warp_lanes;
// A warp's token with more entries in one layer than this would outlast the others; the mean is 17.
constexpr Index heavy_entries = 256;

template <int width, int vectors>
__device__ void gather_entries(const SourceDecode& source, const GatherSource& panel, Index begin,
                               Index count, Pack<width> (&sum)[vectors]) {
    constexpr int in_flight = vectors > 1 ? 4 : 8;  // by registers
    const FeatureValue* entry = source.entry + begin;
    const Pack<width> unused[vectors] = {};
    gather<width, vectors, in_flight, false>(
        panel, static_cast<int>(count),
        [&](int i) {
            const FeatureValue e = entry[i];
            // jumprelu keeps entries for their threshold alone: their rows are not read.
            return e.value == 0 ? Term{} : Term{e.feature, e.value};
        },
        unused, sum, [](int, float) {});
}

// What the sources before have left there.
template <int width>
__device__ Pack<width> load_out(const SourceDecode& source, const float* out) {
    return source.writes ? Pack<width>{} : load_once<width>(out);
}
template <int width>
__device__ void store_out(float* out, Pack<width> sum, const Pack<width>& before) {
    add_scaled(sum, 1.0F, before);
    store_once(out, sum);
}

// A warp takes a token and a panel of columns; a token with many entries is shared by the block.
// Blocks of one panel follow each other, so the panel's slice of the rows comes from memory once
// and then from the L2.
template <int width, int vectors>
__global__ void __launch_bounds__(decode_threads, 3)
    decode_panel(SourceDecode source, unsigned token_blocks) {
    constexpr int panel_columns = vectors * warp_lanes * width;
    const Index first_column = Index{blockIdx.x / token_blocks} * panel_columns;
    const GatherSource panel{
        source.decoder + first_column, source.decoder_stride,
        static_cast<int>(min(Index{panel_columns}, source.width - first_column))};
    const Index first_token = Index{blockIdx.x % token_blocks} * decode_warps;
    float* out = source.out + first_token * source.out_stride + first_column;
    const int warp = warp_of_thread();
    const int lane = lane_of_thread();

    // Lane i: where the block's i-th token starts.
    const Index own_start =
        lane <= decode_warps ? source.start[min(first_token + lane, source.tokens)] : 0;
    const auto own_count = static_cast<int>(__shfl_down_sync(all_lanes, own_start, 1) - own_start);
    const unsigned heavy =
        __ballot_sync(all_lanes, lane < decode_warps && own_count > heavy_entries);
    for (int shared = 0; shared < decode_warps; ++shared) {
        if ((heavy >> shared & 1U) == 0) continue;
        const Index begin = __shfl_sync(all_lanes, own_start, shared);
        const Shard part = shard_of(__shfl_sync(all_lanes, own_count, shared), warp, decode_warps);
        Pack<width> part_sum[vectors] = {};
        gather_entries<width, vectors>(source, panel, begin + part.begin, part.size(), part_sum);
        const Pack<width> sum = sum_of_warps<decode_warps, width>(part_sum);
        const int column = static_cast<int>(threadIdx.x) * width;
        float* const to = out + shared * source.out_stride + column;
        if (column < panel.columns) store_out(to, sum, load_out<width>(source, to));
    }

    const Index begin = __shfl_sync(all_lanes, own_start, warp);
    const int count = __shfl_sync(all_lanes, own_count, warp);
    if (first_token + warp >= source.tokens || (heavy >> warp & 1U) != 0) return;
    if (count == 0 && !source.writes) return;
    float* const to = out + warp * source.out_stride;
    Pack<width> before[vectors] = {};  // under way while the rows are gathered
#pragma unroll
    for (int n = 0; n < vectors; ++n)
        if (column_of<width>(n) < panel.columns)
            before[n] = load_out<width>(source, to + column_of<width>(n));
    Pack<width> sum[vectors] = {};
    gather_entries<width, vectors>(source, panel, begin, count, sum);
#pragma unroll
    for (int n = 0; n < vectors; ++n)
        if (column_of<width>(n) < panel.columns)
            store_out(to + column_of<width>(n), sum[n], before[n]);
}

template <int width, int vectors>
void launch_panels(const SourceDecode& source, StreamHandle stream) {
    const unsigned token_blocks = blocks_for(source.tokens, decode_warps);
    const unsigned panels = blocks_for(source.width, vectors * warp_lanes * width);
    CLT_LAUNCH((decode_panel<width, vectors>), token_blocks * panels, decode_threads, stream,
               source, token_blocks);
}

}  // namespace

std::size_t by_token_bytes(const EntriesByRow& set) {
    return SortScratch(set, nullptr).bytes;
}

EntriesByToken order_by_token(const EntriesByRow& set, void* scratch, StreamHandle stream) {
    const SortScratch s(set, scratch);
    const Index keys = set.layers * set.tokens;
    const Index chunks = blocks_for(set.entries, chunk_entries);
    const unsigned blocks = blocks_for(chunks, sort_warps);
    CLT_LAUNCH(expand_entries, blocks_for(set.entries, sort_threads), sort_threads, stream, set,
               s.key[0], s.entry[0]);
    int from = 0;
    for (int shift = 0; chunks > 0 && (keys - 1) >> shift > 0; shift += digit_bits) {
        CLT_LAUNCH(count_chunk_digits, blocks, sort_threads, stream, s.key[from], set.entries,
                   shift, chunks, s.counts);
        const auto occurring = static_cast<int>(std::min<Index>(digits, ((keys - 1) >> shift) + 1));
        if (chunks > warp_lanes)
            CLT_LAUNCH(scan_digit<sort_threads>, occurring, sort_threads, stream, chunks, s.counts,
                       s.totals);
        else
            CLT_LAUNCH(scan_digit<warp_lanes>, occurring, warp_lanes, stream, chunks, s.counts,
                       s.totals);
        CLT_LAUNCH(move_chunk, blocks, sort_threads, stream, s.key[from], s.entry[from],
                   set.entries, shift, occurring, chunks, s.counts, s.totals, s.key[1 - from],
                   s.entry[1 - from]);
        from = 1 - from;
    }
    CLT_LAUNCH(find_starts, blocks_for(keys + 1, sort_threads), sort_threads, stream, s.key[from],
               set.entries, keys, s.start);
    return {s.start, s.entry[from]};
}

void decode_source(const SourceDecode& source, bool wide_panels, StreamHandle stream) {
    const bool vectorised = source.width % 4 == 0 &&
                            rows_hold_packs(source.decoder, source.decoder_stride) &&
                            rows_hold_packs(source.out, source.out_stride);
    if (!vectorised)
        launch_panels<1, 4>(source, stream);
    else if (wide_panels)
        launch_panels<4, 2>(source, stream);
    else
        launch_panels<4, 1>(source, stream);
}

}  // namespace clt::cuda

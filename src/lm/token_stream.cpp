#include "lm/token_stream.hpp"

#include <algorithm>
#include <cstring>

#include "clt/base/error.hpp"

namespace clt {
namespace {

// A round of reading: enough for every rank to tokenise for some milliseconds.
constexpr std::size_t round_bytes_per_rank = std::size_t{1} << 19;

// Fragments on their way between ranks: a head, then the content.
struct Head {
    Index bytes = 0;
    std::int32_t starts_document = 0;
    std::int32_t is_text = 0;
};

void pack(bool starts_document, bool is_text, const void* data, std::size_t bytes,
          std::vector<std::byte>& out) {
    const Head head{static_cast<Index>(bytes), starts_document, is_text};
    const std::size_t at = out.size();
    out.resize(at + sizeof head + bytes);
    std::memcpy(out.data() + at, &head, sizeof head);
    if (bytes > 0) std::memcpy(out.data() + at + sizeof head, data, bytes);
}

template <class Out>
void unpack(std::span<const std::byte> in, Out&& out) {
    for (std::size_t at = 0; at < in.size();) {
        Head head;
        std::memcpy(&head, in.data() + at, sizeof head);
        at += sizeof head;
        out(head, in.subspan(at, static_cast<std::size_t>(head.bytes)));
        at += static_cast<std::size_t>(head.bytes);
    }
}

std::vector<std::int32_t> ids_of(std::span<const std::byte> bytes) {
    std::vector<std::int32_t> ids(bytes.size() / sizeof(std::int32_t));
    if (!ids.empty()) std::memcpy(ids.data(), bytes.data(), bytes.size());
    return ids;
}

std::size_t bytes_of(const Fragment& fragment) {
    return fragment.text.size() + fragment.ids.size() * sizeof(std::int32_t);
}

}  // namespace

TokenStream::TokenStream(const TextConfig& config, Tokenizer* tokenizer, Index vocabulary,
                         const Communicator& world)
    : config_(config), tokenizer_(tokenizer), vocabulary_(vocabulary), world_(world) {}

std::vector<Fragment> TokenStream::read_round() {
    std::vector<Fragment> round;
    std::size_t bytes = 0;
    while (bytes < round_bytes_per_rank * static_cast<std::size_t>(world_.size())) {
        if (!source_) {
            if (file_ == config_.files.size()) break;
            source_ = open_documents(config_.files[file_++], config_, vocabulary_);
        }
        std::optional<Fragment> fragment = source_->next();
        if (!fragment) {
            source_.reset();
            continue;
        }
        bytes += bytes_of(*fragment);
        round.push_back(std::move(*fragment));
    }
    return round;
}

// Rank 0's fragments to all ranks, contiguous runs of about equal bytes, so that the order of the
// ranks is the order of the text.
std::vector<Fragment> TokenStream::deal(const std::vector<Fragment>& all) const {
    const auto ranks = static_cast<std::size_t>(world_.size());
    std::vector<std::byte> send;
    std::vector<Index> send_bytes(ranks, 0);
    std::size_t total = 0;
    for (const Fragment& fragment : all) total += bytes_of(fragment);
    std::size_t before = 0;
    for (const Fragment& fragment : all) {
        const std::size_t rank =
            std::min(ranks - 1, before * ranks / std::max<std::size_t>(1, total));
        const std::size_t at = send.size();
        if (fragment.ids.empty())
            pack(fragment.starts_document, true, fragment.text.data(), fragment.text.size(), send);
        else
            pack(fragment.starts_document, false, fragment.ids.data(),
                 fragment.ids.size() * sizeof(std::int32_t), send);
        send_bytes[rank] += static_cast<Index>(send.size() - at);
        before += bytes_of(fragment);
    }
    std::vector<Index> from_first = send_bytes;
    world_.broadcast(std::span<Index>(from_first));
    std::vector<Index> receive_bytes(ranks, 0);
    receive_bytes[0] = from_first[static_cast<std::size_t>(world_.rank())];
    std::vector<std::byte> receive(static_cast<std::size_t>(receive_bytes[0]));
    world_.all_to_all(send.data(), send_bytes, receive.data(), receive_bytes);

    std::vector<Fragment> mine;
    unpack(receive, [&](const Head& head, std::span<const std::byte> bytes) {
        Fragment& fragment = mine.emplace_back();
        fragment.starts_document = head.starts_document != 0;
        if (head.is_text != 0)
            fragment.text.assign(reinterpret_cast<const char*>(bytes.data()), bytes.size());
        else
            fragment.ids = ids_of(bytes);
    });
    return mine;
}

std::vector<TokenStream::Part> TokenStream::tokenise(std::vector<Fragment> mine) {
    std::vector<Part> parts;
    for (Fragment& fragment : mine) {
        Part& part = parts.emplace_back();
        part.starts_document = fragment.starts_document;
        part.ids = std::move(fragment.ids);
        if (fragment.text.empty()) continue;
        CLT_CHECK(tokenizer_ != nullptr);
        tokenizer_->encode(fragment.text, part.ids, !fragment.starts_document);
        for (const std::int32_t id : part.ids)
            if (id >= vocabulary_)
                user_error(
                    "the tokenizer gives the id {}, the model's vocabulary has {}: they do "
                    "not belong together",
                    id, vocabulary_);
    }
    return parts;
}

std::vector<TokenStream::Part> TokenStream::share(const std::vector<Part>& mine) const {
    std::vector<std::byte> own;
    for (const Part& part : mine)
        pack(part.starts_document, false, part.ids.data(), part.ids.size() * sizeof(std::int32_t),
             own);
    const std::vector<Index> sizes = world_.all_gather(static_cast<Index>(own.size()));
    std::vector<Part> all;
    for (int rank = 0; rank < world_.size(); ++rank) {
        std::vector<std::byte> bytes;
        if (rank == world_.rank()) bytes = own;
        bytes.resize(static_cast<std::size_t>(sizes[static_cast<std::size_t>(rank)]));
        world_.broadcast(std::span<std::byte>(bytes), rank);
        unpack(bytes, [&](const Head& head, std::span<const std::byte> content) {
            all.push_back({head.starts_document != 0, ids_of(content)});
        });
    }
    return all;
}

bool TokenStream::read_more(SequenceCutter& cutter,
                            std::deque<std::vector<std::int32_t>>& sequences) {
    if (finished_) return false;
    std::vector<Fragment> round;
    world_.together([&] {
        if (world_.rank() == 0) round = read_round();
    });
    const auto out = [&](const std::vector<std::int32_t>& ids) { sequences.push_back(ids); };
    if (world_.broadcast(static_cast<Index>(round.size())) == 0) {
        finished_ = true;
        cutter.finish(out);
        return true;
    }
    std::vector<Fragment> mine = deal(round);
    std::vector<Part> parts;
    world_.together([&] { parts = tokenise(std::move(mine)); });
    for (const Part& part : share(parts)) cutter.add(part.starts_document, part.ids, out);
    return true;
}

}  // namespace clt

#include "lm/token_files.hpp"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <map>

#include "clt/base/error.hpp"
#include "clt/io/content.hpp"
#include "clt/io/file.hpp"
#include "lm/byte_stream.hpp"

namespace clt {
namespace {

constexpr Index fragment_ids = Index{1} << 16;

struct Layout {
    Index bytes = 0;         // of an id
    Index ids = 0;           // in the file
    Index row_ids = 0;       // a document; 0: the whole file is one
    Index header_bytes = 0;  // before the first id
};

Layout binary_layout(const std::string& path, const std::string& type, std::string_view head) {
    // Ids may begin as the short signatures do.
    constexpr std::size_t least_signature = 6;
    if (const auto content = content_of(head, least_signature))
        user_error("{}: holds {}, expected token ids", path, sentence_of(*content, path));
    std::uint32_t first = 0;
    std::memcpy(&first, head.data(), std::min(sizeof first, head.size()));
    for (const std::uint32_t llm_c : {20240520U, 20240801U})
        if (first == llm_c)
            user_error(
                "{}: begins with llm.c's header of 1024 bytes, expected ids alone: tail -c +1025 "
                "takes it off",
                path);
    Layout layout;
    layout.bytes = type == "uint16" ? 2 : 4;
    const auto size = size_of_file(path);
    if (size % layout.bytes != 0)
        user_error("{}: {} bytes are no whole number of {} ids (text.token_type)", path, size,
                   type);
    layout.ids = size / layout.bytes;
    return layout;
}

// The text between `before` and `after` in a NumPy header, nothing when it is not there.
std::string_view between(std::string_view header, std::string_view before, std::string_view after) {
    const std::size_t begin = header.find(before);
    if (begin == std::string_view::npos) return {};
    header.remove_prefix(begin + before.size());
    return header.substr(0, header.find(after));
}

// Format: numpy/lib/format.py, versions 1 to 3.
Layout numpy_layout(const std::string& path, ByteStream& stream) {
    const auto read = [&](char* out, Index n) {
        for (Index done = 0; done < n;) {
            const Index got = stream.read(out + done, n - done);
            if (got == 0) user_error("{}: not a NumPy array: its header is cut", path);
            done += got;
        }
    };
    unsigned char start[8];
    read(reinterpret_cast<char*>(start), 8);
    if (std::memcmp(start, "\x93NUMPY", 6) != 0 || start[6] < 1 || start[6] > 3)
        user_error("{}: not a NumPy array (.npy, version 1 to 3)", path);
    const Index length_bytes = start[6] == 1 ? 2 : 4;
    unsigned char length[4] = {};
    read(reinterpret_cast<char*>(length), length_bytes);
    const Index header_length =
        length[0] | (length[1] << 8) | (length[2] << 16) | (static_cast<Index>(length[3]) << 24);
    if (header_length > 65536) user_error("{}: not a NumPy array: its header is too long", path);
    std::string header(static_cast<std::size_t>(header_length), '\0');
    read(header.data(), header_length);

    Layout layout;
    layout.header_bytes = 8 + length_bytes + header_length;
    const std::string_view type = between(header, "'descr': '", "'");
    static const std::map<std::string_view, Index> widths = {{"|u1", 1}, {"<u2", 2}, {"<u4", 4},
                                                             {"<i4", 4}, {"<u8", 8}, {"<i8", 8}};
    const auto width = widths.find(type);
    if (width == widths.end()) {
        const char* cure = "save it as array.astype(\"<u4\")";
        if (type == "|O")
            cure =
                "documents of different length: concatenate them, with an id between that "
                "text.separator_token names";
        user_error("{}: element type \"{}\", expected whole numbers in little endian: {}", path,
                   type, cure);
    }
    layout.bytes = width->second;
    std::vector<Index> shape;
    const std::string_view list = between(header, "'shape': (", ")");
    for (std::size_t at = 0; at < list.size();) {
        const std::size_t comma = std::min(list.find(',', at), list.size());
        std::string_view number = list.substr(at, comma - at);
        number.remove_prefix(std::min(number.find_first_not_of(' '), number.size()));
        Index value = -1;
        if (!number.empty()) {
            std::from_chars(number.data(), number.data() + number.size(), value);
            if (value < 0) user_error("{}: not a NumPy array: shape ({})", path, list);
            shape.push_back(value);
        }
        at = comma + 1;
    }
    if (shape.empty() || shape.size() > 2)
        user_error("{}: shape ({}), expected one or two dimensions", path, list);
    if (shape.size() == 2 && header.find("'fortran_order': True") != std::string::npos)
        user_error("{}: in column order, expected row order (numpy.ascontiguousarray)", path);
    layout.ids = 1;
    bool fits = true;
    for (const Index extent : shape)
        fits = fits && !__builtin_mul_overflow(layout.ids, extent, &layout.ids);
    layout.row_ids = shape.size() == 2 ? shape[1] : 0;
    Index id_bytes = 0;
    Index all_bytes = 0;
    fits = fits && !__builtin_mul_overflow(layout.ids, layout.bytes, &id_bytes) &&
           !__builtin_add_overflow(layout.header_bytes, id_bytes, &all_bytes);
    if (!fits) user_error("{}: shape ({}) takes more bytes than any file has", path, list);
    const auto size = size_of_file(path);
    if (size != all_bytes)
        user_error("{}: {} bytes, expected {} for shape ({}){}", path, size, all_bytes, list,
                   size < all_bytes ? ": cut, or not fetched whole" : "");
    return layout;
}

// Ids of `bytes` bytes each, from little endian.
std::vector<std::uint64_t> ids_from(std::string_view raw, Index bytes) {
    const auto width = static_cast<std::size_t>(bytes);
    std::vector<std::uint64_t> ids(raw.size() / width, 0);
    for (std::size_t i = 0; i < ids.size() * width; ++i)
        ids[i / width] |= static_cast<std::uint64_t>(static_cast<unsigned char>(raw[i]))
                          << (8 * (i % width));
    return ids;
}

// Whether raw bytes read with another width or order give ids below `vocabulary`, not all of them
// 0.
bool plausible(std::string_view raw, Index bytes, bool swapped, Index vocabulary) {
    std::string copy(raw);
    const auto width = static_cast<std::size_t>(bytes);
    if (swapped)
        for (std::size_t at = 0; at + width <= copy.size(); at += width)
            std::reverse(copy.begin() + static_cast<std::ptrdiff_t>(at),
                         copy.begin() + static_cast<std::ptrdiff_t>(at + width));
    const auto ids = ids_from(copy, bytes);
    return std::any_of(ids.begin(), ids.end(), [](auto id) { return id != 0; }) &&
           std::all_of(ids.begin(), ids.end(),
                       [&](auto id) { return id < static_cast<std::uint64_t>(vocabulary); });
}

// Nothing in a .bin says how wide its ids are. Read as narrower ones, wide ids have a zero (the
// high half) behind each; enough of them in a row are no accident.
void check_width(const std::string& path, std::string_view head, Index bytes, Index vocabulary) {
    constexpr std::size_t enough = 8;
    const auto ids = ids_from(head, bytes);
    if (ids.size() < enough) return;
    // Every id but those at multiples of `period` is zero.
    const auto high_halves = [&](std::size_t period) {
        bool any = false;
        for (std::size_t i = 0; i < ids.size() / period * period; ++i) {
            if (i % period != 0 && ids[i] != 0) return false;
            any = any || ids[i] != 0;
        }
        return any;
    };
    constexpr std::size_t in_64_bits = 8;
    if (high_halves(in_64_bits / static_cast<std::size_t>(bytes)))
        user_error(
            "{}: looks like 64-bit ids ({} of {} are zero), expected 16 or 32 bits: save them with "
            "array.astype(\"<u4\") and set text.token_type = \"uint32\"",
            path, bytes == 2 ? "three" : "one", bytes == 2 ? "four" : "two");
    if (bytes == 2 && high_halves(2))
        user_error(
            "{}: looks like uint32 (every second 16-bit word is zero): set text.token_type = "
            "\"uint32\"",
            path);
    const bool fits = std::all_of(ids.begin(), ids.end(), [&](auto id) {
        return id < static_cast<std::uint64_t>(vocabulary);
    });
    if (fits) return;
    if (bytes == 4 && plausible(head, 2, false, vocabulary))
        user_error(
            "{}: looks like uint16 (its 32-bit ids are not in the vocabulary of {}, its 16-bit ids "
            "are): set text.token_type = \"uint16\"",
            path, vocabulary);
    if (plausible(head, bytes, true, vocabulary))
        user_error("{}: looks like big endian: save it with array.astype(\"{}\")", path,
                   bytes == 2 ? "<u2" : "<u4");
}

class TokenDocuments final : public DocumentSource {
  public:
    TokenDocuments(const std::string& path, const TextConfig& config, Index vocabulary)
        : path_(path),
          vocabulary_(vocabulary),
          separator_(config.separator_token),
          stream_(open_byte_stream(path), content_bytes) {
        const std::string_view head = stream_.head();
        if (text_format(path) == TextFormat::numpy) {
            if (const auto content = content_of(head); content && content->suffix != ".npy")
                user_error("{}: holds {}, expected a NumPy array", path,
                           sentence_of(*content, path));
            layout_ = numpy_layout(path, stream_);
        } else {
            layout_ = binary_layout(path, config.token_type, head);
            check_width(path, head, layout_.bytes, vocabulary);
        }
    }

    std::optional<Fragment> next() override {
        Fragment fragment;
        fragment.starts_document = starts_document_;
        while (position_ < layout_.ids) {
            if (block_at_ == block_.size()) read_block();
            const std::uint64_t id = block_[block_at_++];
            const bool row_ends = layout_.row_ids > 0 && (position_ + 1) % layout_.row_ids == 0;
            const bool separates = separator_ >= 0 && id == static_cast<std::uint64_t>(separator_);
            if (!separates && id >= static_cast<std::uint64_t>(vocabulary_))
                user_error("{}: id {} at place {} is not in the model's vocabulary of {}", path_,
                           id, position_, vocabulary_);
            ++position_;
            if (!separates) fragment.ids.push_back(static_cast<std::int32_t>(id));
            starts_document_ = separates || row_ends;
            if (starts_document_ && fragment.ids.empty()) {
                fragment.starts_document = true;
                continue;
            }
            if (starts_document_ || static_cast<Index>(fragment.ids.size()) == fragment_ids)
                return fragment;
        }
        if (fragment.ids.empty()) return std::nullopt;
        return fragment;
    }

  private:
    void read_block() {
        const Index n = std::min(fragment_ids, layout_.ids - position_);
        std::string bytes(static_cast<std::size_t>(n * layout_.bytes), '\0');
        for (std::size_t done = 0; done < bytes.size();) {
            const Index got =
                stream_.read(bytes.data() + done, static_cast<Index>(bytes.size() - done));
            if (got == 0) user_error("{}: ends early, at place {}", path_, position_);
            done += static_cast<std::size_t>(got);
        }
        block_ = ids_from(bytes, layout_.bytes);
        block_at_ = 0;
    }

    std::string path_;
    Index vocabulary_;
    Index separator_;
    HeadedStream stream_;
    Layout layout_;
    Index position_ = 0;
    std::vector<std::uint64_t> block_;
    std::size_t block_at_ = 0;
    bool starts_document_ = true;
};

}  // namespace

std::unique_ptr<DocumentSource> open_token_file(const std::string& path, const TextConfig& config,
                                                Index vocabulary) {
    return std::make_unique<TokenDocuments>(path, config, vocabulary);
}

}  // namespace clt

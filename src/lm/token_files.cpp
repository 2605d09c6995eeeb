#include "lm/token_files.hpp"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <filesystem>

#include "clt/base/error.hpp"
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

Index size_of_file(const std::string& path) {
    std::error_code code;
    const std::uintmax_t size = std::filesystem::file_size(path, code);
    if (code) user_error("{}: cannot be read: {}", path, code.message());
    return static_cast<Index>(size);
}

Layout binary_layout(const std::string& path, const std::string& type) {
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
        user_error("{}: not a NumPy array", path);
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
    if (type != "<u2" && type != "<u4")
        user_error("{}: element type \"{}\", expected \"<u2\" or \"<u4\" (uint16, uint32)", path,
                   type);
    layout.bytes = type == "<u2" ? 2 : 4;
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
    fits = fits && !__builtin_mul_overflow(layout.ids, layout.bytes, &id_bytes);
    if (!fits) user_error("{}: shape ({}) takes more bytes than any file has", path, list);
    const auto size = size_of_file(path);
    if (size - layout.header_bytes < id_bytes)
        user_error("{}: {} bytes, expected {} for shape ({})", path, size,
                   layout.header_bytes + id_bytes, list);
    return layout;
}

class TokenDocuments final : public DocumentSource {
  public:
    TokenDocuments(const std::string& path, const TextConfig& config, Index vocabulary)
        : path_(path),
          vocabulary_(vocabulary),
          separator_(config.separator_token),
          stream_(open_byte_stream(path)),
          layout_(text_format(path) == TextFormat::numpy ? numpy_layout(path, *stream_)
                                                         : binary_layout(path, config.token_type)) {
    }

    std::optional<Fragment> next() override {
        Fragment fragment;
        fragment.starts_document = starts_document_;
        while (position_ < layout_.ids) {
            if (block_at_ == block_.size()) read_block();
            const std::uint32_t id = block_[block_at_++];
            const bool row_ends = layout_.row_ids > 0 && (position_ + 1) % layout_.row_ids == 0;
            const bool separates = static_cast<Index>(id) == separator_;
            if (!separates && static_cast<Index>(id) >= vocabulary_)
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
        std::vector<unsigned char> bytes(static_cast<std::size_t>(n * layout_.bytes));
        for (std::size_t done = 0; done < bytes.size();) {
            const Index got = stream_->read(reinterpret_cast<char*>(bytes.data() + done),
                                            static_cast<Index>(bytes.size() - done));
            if (got == 0) user_error("{}: ends early, at place {}", path_, position_);
            done += static_cast<std::size_t>(got);
        }
        block_.assign(static_cast<std::size_t>(n), 0);
        block_at_ = 0;
        for (std::size_t i = 0; i < bytes.size(); ++i) {
            const std::size_t width = static_cast<std::size_t>(layout_.bytes);
            block_[i / width] |= static_cast<std::uint32_t>(bytes[i]) << (8 * (i % width));
        }
    }

    std::string path_;
    Index vocabulary_;
    Index separator_;
    std::unique_ptr<ByteStream> stream_;
    Layout layout_;
    Index position_ = 0;
    std::vector<std::uint32_t> block_;
    std::size_t block_at_ = 0;
    bool starts_document_ = true;
};

}  // namespace

std::unique_ptr<DocumentSource> open_token_file(const std::string& path, const TextConfig& config,
                                                Index vocabulary) {
    return std::make_unique<TokenDocuments>(path, config, vocabulary);
}

}  // namespace clt

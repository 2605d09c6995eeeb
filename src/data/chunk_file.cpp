#include "clt/data/chunk_file.hpp"

#include <algorithm>
#include <charconv>

#include "clt/base/checksum.hpp"
#include "clt/base/error.hpp"
#include "data/storage.hpp"

namespace clt {
namespace {

constexpr const char* checksum_name = "clt_checksum";

const char* describe(H5Type type) {
    switch (type) {
        case H5Type::float32:
            return "float32";
        case H5Type::float16:
            return "float16";
        case H5Type::uint16:
            return "uint16 (bfloat16 bits)";
        default:
            return "another type";
    }
}

}  // namespace

std::vector<Index> layer_ids_of(const H5File& file) {
    std::vector<Index> ids;
    for (const std::string& name : file.children()) {
        if (!name.starts_with(layer_group_prefix)) continue;
        const char* const end = name.data() + name.size();
        Index id = 0;
        const auto [stop, error] =
            std::from_chars(name.data() + layer_group_prefix.size(), end, id);
        if (error == std::errc() && stop == end && id >= 0) ids.push_back(id);
    }
    std::sort(ids.begin(), ids.end());
    return ids;
}

void check_layers(const H5File& file, const std::vector<Index>& layer_ids) {
    const std::vector<Index> ids = layer_ids_of(file);
    if (ids.size() != layer_ids.size())
        user_error("{}: holds {} layer_<id> groups, metadata.json says num_layers = {}",
                   file.path(), ids.size(), layer_ids.size());
    for (const Index id : layer_ids)
        if (!std::binary_search(ids.begin(), ids.end(), id))
            user_error("{}: holds no group layer_{}, which the first chunk has", file.path(), id);
}

H5Dataset open_array(const H5File& file, const ChunkLayout& layout, Index rows, std::size_t layer,
                     std::size_t part) {
    const std::string name = layer_dataset_name(layout.layer_ids[layer], part);
    H5Dataset array = file.dataset(name);
    if (array.rows() != rows)
        user_error("{}: {} has {} rows, index.bin says {}", file.path(), name, array.rows(), rows);
    if (array.cols() != layout.d_model)
        user_error("{}: {} has width {}, metadata.json says d_model = {}", file.path(), name,
                   array.cols(), layout.d_model);
    if (array.type() != storage_of(layout.dtype))
        user_error("{}: {} is stored as {}, metadata.json says dtype = {}", file.path(), name,
                   describe(array.type()), name_of(layout.dtype));
    return array;
}

std::uint64_t checksum_of_rows(std::span<const std::byte> rows, Index first, Index row_bytes) {
    const auto step = static_cast<std::size_t>(row_bytes);
    std::uint64_t sum = 0;
    auto number = static_cast<std::uint64_t>(first);
    for (std::size_t at = 0; at < rows.size(); at += step)
        sum += mix(number++, checksum_of(rows.subspan(at, step)));
    return sum;
}

std::string file_checksum(std::string_view bytes) {
    return hexadecimal(checksum_of(bytes));
}

void write_checksum(H5Dataset& array, std::uint64_t checksum) {
    array.write_text(checksum_name, hexadecimal(checksum));
}

std::optional<std::uint64_t> read_checksum(const H5Dataset& array) {
    const std::optional<std::string> text = array.read_text(checksum_name);
    if (!text) return std::nullopt;
    std::uint64_t checksum = 0;
    const char* const end = text->data() + text->size();
    const auto [stop, error] = std::from_chars(text->data(), end, checksum, 16);
    if (error != std::errc() || stop != end || text->size() != 16)
        user_error("{}: attribute {} = \"{}\", expected 16 hexadecimal digits", array.name(),
                   checksum_name, *text);
    return checksum;
}

ChunkContent look_at_chunk(const std::string& path, Index rows, const ChunkLayout& layout) {
    const H5File file = H5File::open(path);
    check_layers(file, layout.layer_ids);
    ChunkContent content;
    for (std::size_t layer = 0; layer < layout.layer_ids.size(); ++layer)
        for (std::size_t part = 0; part < dataset_parts.size(); ++part) {
            const H5Dataset array = open_array(file, layout, rows, layer, part);
            const std::optional<std::uint64_t> checksum = read_checksum(array);
            content.has_checksums = content.has_checksums && checksum;
            content.arrays.push_back(checksum ? *checksum : array.sample());
        }
    return content;
}

}  // namespace clt

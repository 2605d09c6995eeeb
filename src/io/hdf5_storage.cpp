#include "io/hdf5_storage.hpp"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "clt/base/error.hpp"
#include "io/hdf5_call.hpp"

namespace clt::h5 {
namespace {

namespace fs = std::filesystem;

// HDF5 walks over all chunks before the one it is asked about, so only short lists are looked at
// chunk by chunk. Longer ones are counted: an address beyond the file's end needs damage in them.
constexpr hsize_t most_chunks_looked_at = 512;

H5Handle creation_of(hid_t dataset, const std::string& name) {
    return own(check(H5Dget_create_plist(dataset), name, "read", true), H5Pclose);
}

H5Handle space_of(hid_t dataset, const std::string& name) {
    return own(check(H5Dget_space(dataset), name, "read", true), H5Sclose);
}

std::vector<hsize_t> extent_of(hid_t space, const std::string& name) {
    std::vector<hsize_t> extent(
        static_cast<std::size_t>(check(H5Sget_simple_extent_ndims(space), name, "read", true)));
    check(H5Sget_simple_extent_dims(space, extent.data(), nullptr), name, "read", true);
    return extent;
}

// Registered at the HDF Group; a file need not repeat a filter's name.
std::string_view name_of_filter(H5Z_filter_t id) {
    constexpr std::array<std::pair<H5Z_filter_t, std::string_view>, 13> known{{
        {1, "gzip"},
        {2, "shuffle"},
        {3, "fletcher32"},
        {4, "szip"},
        {5, "nbit"},
        {6, "scaleoffset"},
        {307, "bzip2"},
        {32000, "lzf"},
        {32001, "blosc"},
        {32004, "lz4"},
        {32008, "bitshuffle"},
        {32015, "zstd"},
        {32026, "blosc2"},
    }};
    for (const auto& [number, name] : known)
        if (number == id) return name;
    return "unknown to clt";
}

bool can_decode(H5Z_filter_t id) {
    unsigned flags = 0;
    const bool there = H5Zfilter_avail(id) > 0 && H5Zget_filter_info(id, &flags) >= 0 &&
                       (flags & H5Z_FILTER_CONFIG_DECODE_ENABLED) != 0;
    H5Eclear2(H5E_DEFAULT);
    return there;
}

hsize_t length_of(const std::string& path) {
    std::error_code code;
    const auto bytes = fs::file_size(path, code);
    if (code) user_error("{}: cannot be read: {}", path, code.message());
    return bytes;
}

void check_within(hsize_t begin, hsize_t bytes, const std::string& path, const std::string& name) {
    const hsize_t length = length_of(path);
    if (begin > length || bytes > length - begin)
        user_error(
            "{}: its content lies at bytes {} to {}, beyond the file's end at {}: the file is cut "
            "or damaged; generate it again",
            name, begin, begin + bytes, length);
}

void check_contiguous(hid_t dataset, hsize_t bytes, const std::string& path,
                      const std::string& name) {
    const haddr_t begin = H5Dget_offset(dataset);
    H5Eclear2(H5E_DEFAULT);
    const hsize_t stored = H5Dget_storage_size(dataset);
    if (begin == HADDR_UNDEF || stored < bytes)
        user_error("{}: was never written (its writer stopped); generate this file again", name);
    check_within(begin, bytes, path, name);
}

void check_chunks(hid_t dataset, hid_t creation, const std::vector<hsize_t>& extent,
                  std::size_t element_bytes, const std::string& path, const std::string& name) {
    std::vector<hsize_t> chunk(extent.size());
    check(H5Pget_chunk(creation, static_cast<int>(chunk.size()), chunk.data()), name, "read", true);
    hsize_t expected = 1;
    hsize_t chunk_bytes = element_bytes;
    for (std::size_t i = 0; i < extent.size(); ++i) {
        expected *= (extent[i] + chunk[i] - 1) / chunk[i];
        chunk_bytes *= chunk[i];
    }
    const H5Handle space = space_of(dataset, name);
    hsize_t present = 0;
    check(H5Dget_num_chunks(dataset, space.id(), &present), name, "read", true);
    if (present < expected)
        user_error(
            "{}: {} of {} HDF5 chunks were never written (its writer stopped); generate this file "
            "again",
            name, expected - present, expected);
    if (present > most_chunks_looked_at) return;
    const bool filtered = check(H5Pget_nfilters(creation), name, "read", true) > 0;
    std::vector<hsize_t> place(extent.size());
    for (hsize_t i = 0; i < present; ++i) {
        unsigned skipped = 0;
        haddr_t begin = HADDR_UNDEF;
        hsize_t bytes = 0;
        check(H5Dget_chunk_info(dataset, space.id(), i, place.data(), &skipped, &begin, &bytes),
              name, "read", true);
        if (begin == HADDR_UNDEF || bytes == 0 || (!filtered && bytes != chunk_bytes))
            user_error("{}: HDF5 chunk {} has no content; generate this file again", name, i);
        check_within(begin, bytes, path, name);
    }
}

// The folders of an environment variable, where ${ORIGIN} is that of the file itself.
std::vector<fs::path> folders_of(const char* variable, const fs::path& origin) {
    std::vector<fs::path> folders;
    const char* const value = std::getenv(variable);
    std::string_view left = value == nullptr ? "" : value;
    while (!left.empty()) {
        const std::size_t end = std::min(left.find(':'), left.size());
        constexpr std::string_view here = "${ORIGIN}";
        const std::string_view part = left.substr(0, end);
        if (part.starts_with(here))
            folders.emplace_back(origin.string() + std::string(part.substr(here.size())));
        else if (!part.empty())
            folders.emplace_back(part);
        left.remove_prefix(std::min(end + 1, left.size()));
    }
    return folders;
}

// Where HDF5 finds the parts of an array outside its file: for external storage relative to the
// prefix or the working folder, for a virtual dataset relative to the prefix, the file's own folder
// or the working folder.
std::optional<std::string> find_source(const std::string& source, const std::string& path,
                                       bool is_virtual) {
    const fs::path origin = fs::absolute(path).parent_path();
    const fs::path name = source;
    std::vector<fs::path> candidates;
    if (name.is_relative() || is_virtual)
        for (const fs::path& folder :
             folders_of(is_virtual ? "HDF5_VDS_PREFIX" : "HDF5_EXTFILE_PREFIX", origin))
            candidates.push_back(folder / (name.is_absolute() ? name.filename() : name));
    if (is_virtual) candidates.push_back(origin / name);
    if (is_virtual && name.is_absolute()) candidates.push_back(origin / name.filename());
    candidates.push_back(name);
    for (const fs::path& candidate : candidates) {
        std::error_code code;
        if (fs::exists(candidate, code)) return candidate.string();
    }
    return std::nullopt;
}

[[noreturn]] void no_source(const std::string& name, const std::string& source) {
    user_error(
        "{}: its content is in the file {}, which is missing; bring that file along, or copy the "
        "array into one file (h5repack -l CONTI)",
        name, source);
}

void check_external(hid_t creation, hsize_t bytes, const std::string& path,
                    const std::string& name) {
    const int count = check(H5Pget_external_count(creation), name, "read", true);
    hsize_t left = bytes;
    for (int i = 0; i < count && left > 0; ++i) {
        std::array<char, 4096> source{};
        off_t begin = 0;
        hsize_t size = 0;
        check(H5Pget_external(creation, static_cast<unsigned>(i), source.size() - 1, source.data(),
                              &begin, &size),
              name, "read", true);
        const auto found = find_source(source.data(), path, false);
        if (!found) no_source(name, source.data());
        const hsize_t part = std::min(left, size);
        const hsize_t length = length_of(*found);
        if (static_cast<hsize_t>(begin) + part > length)
            user_error("{}: {} holds {} bytes, {} are needed: it is cut", name, *found, length,
                       static_cast<hsize_t>(begin) + part);
        left -= part;
    }
    if (left > 0)
        user_error("{}: its external files have room for {} of {} bytes", name, bytes - left,
                   bytes);
}

std::string text_of(ssize_t (*get)(hid_t, size_t, char*, size_t), hid_t creation, std::size_t i,
                    const std::string& name) {
    const auto length =
        static_cast<std::size_t>(check(get(creation, i, nullptr, 0), name, "read", true));
    std::string text(length + 1, '\0');
    check(get(creation, i, text.data(), text.size()), name, "read", true);
    text.resize(length);
    return text;
}

void check_virtual(hid_t dataset, hid_t creation, hsize_t elements, const std::string& path,
                   const std::string& name) {
    std::size_t count = 0;
    check(H5Pget_virtual_count(creation, &count), name, "read", true);
    hsize_t covered = 0;
    for (std::size_t i = 0; i < count; ++i) {
        const H5Handle target =
            own(check(H5Pget_virtual_vspace(creation, i), name, "read", true), H5Sclose);
        const hssize_t points = H5Sget_select_npoints(target.id());
        std::string source = text_of(H5Pget_virtual_filename, creation, i, name);
        // A growing pattern: the array was opened so that it ends at the first source that lacks.
        if (points < 0 || source.find("%b") != std::string::npos) {
            H5Eclear2(H5E_DEFAULT);
            return;
        }
        covered += static_cast<hsize_t>(points);
        const bool same_file = source == ".";
        const auto found = same_file ? path : find_source(source, path, true);
        if (!found) no_source(name, source);
        const std::string array = text_of(H5Pget_virtual_dsetname, creation, i, name);
        const std::string where = *found + ":" + array;
        const H5Handle file = same_file
                                  ? H5Handle()
                                  : own(check(H5Fopen(found->c_str(), H5F_ACC_RDONLY, H5P_DEFAULT),
                                              *found, "opened", true),
                                        H5Fclose);
        const H5Handle part =
            own(check(H5Dopen2(same_file ? dataset : file.id(),
                               (same_file && array[0] != '/' ? "/" + array : array).c_str(),
                               H5P_DEFAULT),
                      where, "opened", true),
                H5Dclose);
        const H5Handle wanted =
            own(check(H5Pget_virtual_srcspace(creation, i), name, "read", true), H5Sclose);
        const H5Handle there = space_of(part.id(), where);
        const std::vector<hsize_t> extent = extent_of(there.id(), where);
        if (H5Sget_select_type(wanted.id()) == H5S_SEL_HYPERSLABS) {
            std::vector<hsize_t> low(extent.size());
            std::vector<hsize_t> high(extent.size());
            if (H5Sget_simple_extent_ndims(wanted.id()) != static_cast<int>(extent.size()) ||
                H5Sget_select_bounds(wanted.id(), low.data(), high.data()) < 0)
                user_error("{}: of another shape than {} expects", where, name);
            for (std::size_t k = 0; k < extent.size(); ++k)
                if (high[k] >= extent[k])
                    user_error("{}: holds {} rows, {} needs {}", where, extent[k], name,
                               high[k] + 1);
        } else if (H5Sget_simple_extent_npoints(there.id()) < points) {
            user_error("{}: holds {} elements, {} needs {}", where,
                       H5Sget_simple_extent_npoints(there.id()), name, points);
        }
        check_filters(part.id(), where);
        check_storage(part.id(), *found, where);
    }
    if (covered < elements)
        user_error("{}: {} of its {} elements come from no file", name, elements - covered,
                   elements);
}

}  // namespace

void check_filters(hid_t dataset, const std::string& name) {
    const H5Handle creation = creation_of(dataset, name);
    const int count = check(H5Pget_nfilters(creation.id()), name, "read", true);
    for (int i = 0; i < count; ++i) {
        unsigned flags = 0;
        std::size_t values = 0;
        std::array<char, 64> text{};
        const H5Z_filter_t id =
            H5Pget_filter2(creation.id(), static_cast<unsigned>(i), &flags, &values, nullptr,
                           text.size() - 1, text.data(), nullptr);
        check(id, name, "read", true);
        if (can_decode(id)) continue;
        unsigned major = 0;
        unsigned minor = 0;
        unsigned release = 0;
        H5get_libversion(&major, &minor, &release);
        user_error(
            "{} is compressed with filter {} ({}), which this HDF5 {}.{}.{} does not have; rewrite "
            "it with gzip, or name the folder of the filter's plugin in HDF5_PLUGIN_PATH",
            name, text[0] != '\0' ? text.data() : name_of_filter(id), id, major, minor, release);
    }
}

bool lies_elsewhere(hid_t dataset, const std::string& name) {
    const H5Handle creation = creation_of(dataset, name);
    return H5Pget_layout(creation.id()) == H5D_VIRTUAL || H5Pget_external_count(creation.id()) > 0;
}

void check_storage(hid_t dataset, const std::string& path, const std::string& name) {
    const H5Handle creation = creation_of(dataset, name);
    const H5Handle space = space_of(dataset, name);
    const H5Handle type = own(check(H5Dget_type(dataset), name, "read", true), H5Tclose);
    const std::size_t element_bytes = H5Tget_size(type.id());
    const std::vector<hsize_t> extent = extent_of(space.id(), name);
    hsize_t elements = 1;
    for (const hsize_t n : extent) elements *= n;
    if (elements == 0) return;
    const hsize_t bytes = elements * element_bytes;
    switch (H5Pget_layout(creation.id())) {
        case H5D_CONTIGUOUS:
            if (H5Pget_external_count(creation.id()) > 0)
                check_external(creation.id(), bytes, path, name);
            else
                check_contiguous(dataset, bytes, path, name);
            return;
        case H5D_CHUNKED:
            check_chunks(dataset, creation.id(), extent, element_bytes, path, name);
            return;
        case H5D_VIRTUAL:
            check_virtual(dataset, creation.id(), elements, path, name);
            return;
        default:  // compact: it lies in the header, and that was read
            return;
    }
}

std::vector<Shard> stored_ends(hid_t dataset, const std::string& name) {
    constexpr Index end_bytes = 4096;
    const H5Handle creation = creation_of(dataset, name);
    std::vector<Shard> ends;
    const auto add = [&](haddr_t begin, hsize_t bytes, bool first) {
        const auto from = static_cast<Index>(begin);
        const auto to = static_cast<Index>(begin + bytes);
        ends.push_back(first ? Shard{from, std::min(to, from + end_bytes)}
                             : Shard{std::max(from, to - end_bytes), to});
    };
    if (H5Pget_external_count(creation.id()) > 0) return ends;
    if (H5Pget_layout(creation.id()) == H5D_CONTIGUOUS) {
        const haddr_t begin = H5Dget_offset(dataset);
        H5Eclear2(H5E_DEFAULT);
        if (begin == HADDR_UNDEF) return ends;
        for (const bool first : {true, false}) add(begin, H5Dget_storage_size(dataset), first);
    }
    if (H5Pget_layout(creation.id()) == H5D_CHUNKED) {
        const H5Handle space = space_of(dataset, name);
        hsize_t count = 0;
        check(H5Dget_num_chunks(dataset, space.id(), &count), name, "read", true);
        if (count == 0) return ends;
        std::vector<hsize_t> place(extent_of(space.id(), name).size());
        for (const bool first : {true, false}) {
            unsigned skipped = 0;
            haddr_t begin = 0;
            hsize_t bytes = 0;
            check(H5Dget_chunk_info(dataset, space.id(), first ? 0 : count - 1, place.data(),
                                    &skipped, &begin, &bytes),
                  name, "read", true);
            add(begin, bytes, first);
        }
    }
    return ends;
}

}  // namespace clt::h5

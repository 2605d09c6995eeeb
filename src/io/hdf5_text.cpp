// Text attributes of HDF5 objects, and gzip as HDF5 stores it.
#include <zlib.h>

#include <algorithm>
#include <cstring>

#include "clt/base/error.hpp"
#include "io/hdf5_call.hpp"

namespace clt {
namespace h5 {

void write_text(hid_t object, const std::string& owner, const std::string& name,
                const std::string& text) {
    const std::string where = owner + ": attribute " + name;
    CLT_CHECK(text.find('\0') == std::string::npos, "{}", where);
    // Of fixed length: strings of variable length live in HDF5's global heap, which has no
    // checksum, and a zeroed heap sends HDF5 1.10 into an endless loop.
    const H5Handle type = own(check(H5Tcopy(H5T_C_S1), where, "written"), H5Tclose);
    check(H5Tset_size(type.id(), text.size() + 1), where, "written");
    check(H5Tset_cset(type.id(), H5T_CSET_UTF8), where, "written");
    const H5Handle space = own(check(H5Screate(H5S_SCALAR), where, "written"), H5Sclose);
    if (H5Aexists(object, name.c_str()) > 0)
        check(H5Adelete(object, name.c_str()), where, "written");
    const H5Handle attribute =
        own(check(H5Acreate2(object, name.c_str(), type.id(), space.id(), H5P_DEFAULT, H5P_DEFAULT),
                  where, "written"),
            H5Aclose);
    check(H5Awrite(attribute.id(), type.id(), text.c_str()), where, "written");
}

std::optional<std::string> read_text(hid_t object, const std::string& owner,
                                     const std::string& name) {
    const std::string where = owner + ": attribute " + name;
    if (check(H5Aexists(object, name.c_str()), where, "read", true) == 0) return std::nullopt;
    const H5Handle attribute =
        own(check(H5Aopen(object, name.c_str(), H5P_DEFAULT), where, "read", true), H5Aclose);
    const H5Handle type = own(check(H5Aget_type(attribute.id()), where, "read", true), H5Tclose);
    const H5Handle space = own(check(H5Aget_space(attribute.id()), where, "read", true), H5Sclose);
    if (H5Tget_class(type.id()) != H5T_STRING || H5Sget_simple_extent_npoints(space.id()) != 1)
        user_error("{}: expected one string", where);
    if (H5Tis_variable_str(type.id()) > 0) {
        char* bytes = nullptr;
        check(H5Aread(attribute.id(), type.id(), &bytes), where, "read", true);
        std::string text = bytes == nullptr ? "" : bytes;
        H5free_memory(bytes);
        return text;
    }
    std::string text(H5Tget_size(type.id()), '\0');
    check(H5Aread(attribute.id(), type.id(), text.data()), where, "read", true);
    text.resize(std::min(text.size(), std::strlen(text.c_str())));
    return text;
}

}  // namespace h5

std::vector<std::byte> deflate(std::span<const std::byte> bytes, int level) {
    uLongf length = compressBound(bytes.size());
    std::vector<std::byte> out(length);
    const int code = compress2(reinterpret_cast<Bytef*>(out.data()), &length,
                               reinterpret_cast<const Bytef*>(bytes.data()), bytes.size(), level);
    CLT_CHECK(code == Z_OK, "zlib's compress2 ended with {}", code);
    out.resize(length);
    return out;
}

}  // namespace clt

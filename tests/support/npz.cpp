#include "support/npz.hpp"

#include <zlib.h>

#include <cstring>
#include <stdexcept>

#include "clt/io/file.hpp"

namespace clt::test {
namespace {

template <class T>
T at(const std::string& bytes, std::size_t offset) {
    if (offset + sizeof(T) > bytes.size()) throw std::runtime_error("npz: cut short");
    T value;
    std::memcpy(&value, bytes.data() + offset, sizeof(T));
    return value;
}

std::string inflate_raw(const std::string& packed, std::size_t size) {
    std::string out(size, '\0');
    z_stream stream{};
    if (inflateInit2(&stream, -MAX_WBITS) != Z_OK) throw std::runtime_error("npz: zlib");
    stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(packed.data()));
    stream.avail_in = static_cast<uInt>(packed.size());
    stream.next_out = reinterpret_cast<Bytef*>(out.data());
    stream.avail_out = static_cast<uInt>(out.size());
    const int code = inflate(&stream, Z_FINISH);
    inflateEnd(&stream);
    if (code != Z_STREAM_END || stream.total_out != size)
        throw std::runtime_error("npz: damaged member");
    return out;
}

NpyArray parse_npy(const std::string& bytes) {
    if (bytes.rfind("\x93NUMPY\x01", 0) != 0) throw std::runtime_error("npz: not npy version 1");
    const std::size_t header = at<std::uint16_t>(bytes, 8);
    const std::string text = bytes.substr(10, header);
    if (text.find("'<f4'") == std::string::npos ||
        text.find("'fortran_order': False") == std::string::npos)
        throw std::runtime_error("npz: not float32 in C order");
    NpyArray array;
    Index count = 1;
    const std::size_t open = text.find('(') + 1;
    std::size_t digit = open;
    while (text[digit] != ')') {
        if (text[digit] < '0' || text[digit] > '9') {
            ++digit;
            continue;
        }
        std::size_t length = 0;
        array.shape.push_back(std::stoll(text.substr(digit), &length));
        count *= array.shape.back();
        digit += length;
    }
    array.values.resize(static_cast<std::size_t>(count));
    if (bytes.size() != 10 + header + array.values.size() * 4)
        throw std::runtime_error("npz: array of another size than its header says");
    std::memcpy(array.values.data(), bytes.data() + 10 + header, array.values.size() * 4);
    return array;
}

}  // namespace

std::map<std::string, NpyArray> read_npz(const std::string& path) {
    const std::string zip = read_file(path);
    std::size_t end = zip.rfind("PK\x05\x06");
    if (end == std::string::npos) throw std::runtime_error(path + ": not a zip");
    std::map<std::string, NpyArray> arrays;
    std::size_t entry = at<std::uint32_t>(zip, end + 16);
    for (int left = at<std::uint16_t>(zip, end + 10); left > 0; --left) {
        const auto method = at<std::uint16_t>(zip, entry + 10);
        const std::size_t packed = at<std::uint32_t>(zip, entry + 20);
        const std::size_t size = at<std::uint32_t>(zip, entry + 24);
        const std::size_t name_length = at<std::uint16_t>(zip, entry + 28);
        const std::size_t local = at<std::uint32_t>(zip, entry + 42);
        std::string name = zip.substr(entry + 46, name_length);
        name.resize(name.size() - std::strlen(".npy"));
        const std::size_t data =
            local + 30u + at<std::uint16_t>(zip, local + 26) + at<std::uint16_t>(zip, local + 28);
        const std::string member = zip.substr(data, packed);
        arrays[name] = parse_npy(method == 8 ? inflate_raw(member, size) : member);
        entry += 46u + name_length + at<std::uint16_t>(zip, entry + 30) +
                 at<std::uint16_t>(zip, entry + 32);
    }
    return arrays;
}

}  // namespace clt::test

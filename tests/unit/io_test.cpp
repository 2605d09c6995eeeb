// Small files and safetensors: whole or not at all, and a sentence for everything that is wrong.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "clt/base/checksum.hpp"
#include "clt/base/error.hpp"
#include "clt/io/descriptor.hpp"
#include "clt/io/file.hpp"
#include "clt/io/safetensors.hpp"
#include "support/file_size_limit.hpp"
#include "support/scratch.hpp"

namespace clt {
namespace {

using test::FileSizeLimit;
using test::message_of;
using test::Scratch;

TEST(File, WritesWholeAndReadsBack) {
    const Scratch scratch;
    const std::string path = scratch / "a";
    for (const std::string& bytes :
         {std::string(), std::string("a\0b", 3), std::string(3 << 20, 'x')}) {
        write_file(path, bytes);
        EXPECT_EQ(read_file(path), bytes);
    }
    EXPECT_FALSE(std::filesystem::exists(path + ".tmp"));
}

TEST(File, AFullDiskLeavesTheOldContentAndNothingElse) {
    const Scratch scratch;
    const std::string path = scratch / "a";
    write_file(path, "old");
    {
        const FileSizeLimit limit(1000);
        EXPECT_EQ(message_of<UserError>([&] { write_file(path, std::string(2000, 'x')); }),
                  path + ".tmp: cannot be written: File too large");
    }
    EXPECT_EQ(read_file(path), "old");
    EXPECT_FALSE(std::filesystem::exists(path + ".tmp"));
}

TEST(File, NamesWhatCannotBeReadOrWritten) {
    const Scratch scratch;
    EXPECT_EQ(message_of<UserError>([&] { read_file(scratch / "no"); }),
              scratch / "no: cannot be read: No such file or directory");
    EXPECT_EQ(message_of<UserError>([&] { read_file(scratch.path()); }),
              scratch.path() + ": cannot be read: Is a directory");
    write_file(scratch / "a", "");
    EXPECT_EQ(message_of<UserError>([&] { write_file(scratch / "a/b", "x"); }),
              scratch / "a/b.tmp: cannot be written: Not a directory");
    EXPECT_EQ(message_of<UserError>([&] { make_writable_folder(scratch / "a/b"); }),
              scratch / "a/b: the folder cannot be made: Not a directory");
    make_writable_folder(scratch / "c/d");
    make_writable_folder(scratch / "c/d");
    EXPECT_TRUE(std::filesystem::is_empty(scratch / "c/d"));
}

TEST(JsonLines, AppendsWholeLinesAndCutsWhatCameAfterACheckpoint) {
    const Scratch scratch;
    const std::string path = scratch / "metrics.jsonl";
    Index kept = 0;
    {
        JsonLines lines(path);
        lines.write("{\"step\":1}");
        kept = lines.bytes();
        lines.write("{\"step\":2}");
    }
    {
        JsonLines lines(path, kept);
        EXPECT_EQ(lines.bytes(), kept);
        lines.write("{\"step\":3}");
    }
    EXPECT_EQ(read_file(path), "{\"step\":1}\n{\"step\":3}\n");
    JsonLines(path, 1'000'000);  // the file is shorter than remembered: all of it stays
    EXPECT_EQ(read_file(path), "{\"step\":1}\n{\"step\":3}\n");
    JsonLines(path).write("{}");
    EXPECT_EQ(read_file(path), "{}\n");
}

TEST(JsonLines, AFileThatIsNotWhatItWasIsWarnedOf) {
    const Scratch scratch;
    const std::string path = scratch / "metrics.jsonl";
    const auto warning = [&](Index bytes, const std::string& fingerprint) {
        testing::internal::CaptureStderr();
        JsonLines lines(path, bytes, fingerprint);
        return testing::internal::GetCapturedStderr();
    };
    std::string fingerprint;
    Index bytes = 0;
    {
        JsonLines lines(path);
        lines.write("{\"loss\":1}");
        lines.write("{\"loss\":2}");
        fingerprint = lines.fingerprint();
        bytes = lines.bytes();
    }
    EXPECT_EQ(warning(bytes, fingerprint), "");
    EXPECT_EQ(warning(bytes, ""), "");
    write_file(path, "{\"loss\":1}\n{\"loss\":3}\n");
    EXPECT_NE(warning(bytes, fingerprint).find("metrics.jsonl: was changed"), std::string::npos);
    write_file(path, "{\"loss\":1}\n");
    EXPECT_NE(warning(bytes, fingerprint).find("11 bytes of the 22"), std::string::npos);
}

TEST(JsonLines, ALineThatCannotBeWrittenIsLostAndCounted) {
    const Scratch scratch;
    const std::string path = scratch / "metrics.jsonl";
    JsonLines lines(path);
    {
        const FileSizeLimit limit(10);
        lines.write("1234567");
        EXPECT_EQ(lines.lost(), 0);
        lines.write("1234567");
        lines.write("1234567");
        EXPECT_EQ(lines.lost(), 2);
        lines.sync();
    }
    EXPECT_EQ(read_file(path), "1234567\n");
    EXPECT_EQ(lines.bytes(), 8);
    lines.write("8");
    EXPECT_EQ(lines.lost(), 0);
    EXPECT_EQ(read_file(path), "1234567\n8\n");
}

TEST(JsonLines, HalfALineIsCutOff) {
    const Scratch scratch;
    const std::string path = scratch / "metrics.jsonl";
    for (const Index kept : {100, 12}) {  // more than there is, and a place inside a line
        write_file(path, "{\"step\":1}\n{\"step\":");
        JsonLines(path, kept).write("{\"step\":2}");
        EXPECT_EQ(read_file(path), "{\"step\":1}\n{\"step\":2}\n");
    }
}

std::string safetensors(const std::string& header, const std::string& data) {
    const std::uint64_t length = header.size();
    std::string bytes(8, '\0');
    std::memcpy(bytes.data(), &length, 8);
    return bytes + header + data;
}

TEST(Safetensors, ReadsFloatsOfAllThreeTypes) {
    const Scratch scratch;
    const std::string path = scratch / "m.safetensors";
    const float f32[2] = {1.5F, -2.0F};
    const std::uint16_t f16[2] = {float_to_float16(0.25F), float_to_float16(-3.0F)};
    const std::uint16_t bf16[2] = {float_to_bfloat16(8.0F), float_to_bfloat16(-1.0F)};
    std::string data(16, '\0');
    std::memcpy(data.data(), f32, 8);
    std::memcpy(data.data() + 8, f16, 4);
    std::memcpy(data.data() + 12, bf16, 4);
    write_file(path, safetensors(R"({"__metadata__":{"format":"pt"},)"
                                 R"("c":{"dtype":"BF16","shape":[1,2],"data_offsets":[12,16]},)"
                                 R"("a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                                 R"("e":{"dtype":"F32","shape":[0,7],"data_offsets":[8,8]},)"
                                 R"("b":{"dtype":"F16","shape":[2,1],"data_offsets":[8,12]}})",
                                 data));
    const SafetensorsFile file(path);
    EXPECT_EQ(file.entries().size(), 4U);
    EXPECT_EQ(file.entries().at("c").shape, (std::vector<Index>{1, 2}));
    EXPECT_EQ(file.metadata().at("format"), "pt");
    EXPECT_EQ(file.read("a"), (std::vector<float>{1.5F, -2.0F}));
    EXPECT_EQ(file.read("b"), (std::vector<float>{0.25F, -3.0F}));
    EXPECT_EQ(file.read("c"), (std::vector<float>{8.0F, -1.0F}));
    EXPECT_TRUE(file.read("e").empty());
    EXPECT_EQ(message_of<UserError>([&] { file.read("d"); }), path + ": has no tensor \"d\"");
}

// Stands in for pread: fails a number of times, then reads.
int failures_left = 0;
int failure_code = 0;
std::vector<double> pauses;
ssize_t failing_read(int fd, void* out, std::size_t bytes, off_t offset) {
    if (failures_left > 0) {
        --failures_left;
        errno = failure_code;
        return -1;
    }
    return ::pread(fd, out, bytes, offset);
}

TEST(Descriptor, WhatFailsForAMomentIsReadAgain) {
    const Scratch scratch;
    const std::string path = scratch / "a";
    write_file(path, "content");
    const ReadCalls real =
        replace_read_calls({&failing_read, [](double seconds) { pauses.push_back(seconds); }});
    for (const int code : {EIO, ESTALE, EAGAIN}) {
        const Index before = repeated_reads();
        pauses.clear();
        failure_code = code;
        failures_left = 4;
        EXPECT_EQ(read_file(path), "content");
        EXPECT_EQ(repeated_reads() - before, 4);
        EXPECT_EQ(pauses, (std::vector<double>{0.05, 0.2, 0.8, 3.2}));
    }
    failure_code = EINTR;  // a signal is no failure
    failures_left = 20;
    pauses.clear();
    EXPECT_EQ(read_file(path), "content");
    EXPECT_TRUE(pauses.empty());
    failure_code = EIO;
    failures_left = 1000;
    EXPECT_EQ(message_of<UserError>([&] { read_file(path); }),
              path + ": cannot be read: Input/output error");
    failures_left = 1000;
    failure_code = EISDIR;
    pauses.clear();
    EXPECT_EQ(message_of<UserError>([&] { read_file(path); }),
              path + ": cannot be read: Is a directory");
    EXPECT_TRUE(pauses.empty());
    failures_left = 0;
    replace_read_calls(real);
}

// Opening a pipe waits for its other end, which may never come.
TEST(Descriptor, PipesAndDevicesAreRefused) {
    const Scratch scratch;
    const std::string path = scratch / "pipe";
    ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
    EXPECT_EQ(message_of<UserError>([&] { read_file(path); }),
              path + ": is a pipe, expected a file");
    EXPECT_EQ(message_of<UserError>([&] { JsonLines unused(path); }),
              path + ": is a pipe or a device, expected a file");
    EXPECT_EQ(message_of<UserError>([] { read_file("/dev/zero"); }),
              "/dev/zero: is a device, expected a file");
}

TEST(Paths, WhatTheSystemRefusesIsOneSentence) {
    const Scratch scratch;
    const std::string loop = scratch / "loop";
    ASSERT_EQ(::symlink(loop.c_str(), loop.c_str()), 0);
    const std::string words = loop + ": cannot be read: Too many levels of symbolic links";
    EXPECT_EQ(message_of<UserError>([&] { path_exists(loop); }), words);
    EXPECT_EQ(message_of<UserError>([&] { is_folder(loop); }), words);
    EXPECT_EQ(message_of<UserError>([&] { size_of_file(loop); }), words);
    EXPECT_NE(message_of<UserError>([&] { names_in(loop); }).find("symbolic links"),
              std::string::npos);
    EXPECT_FALSE(path_exists(scratch / "none"));
    EXPECT_FALSE(path_exists(scratch / "none/below"));
    EXPECT_FALSE(is_folder(scratch / "none"));
    EXPECT_TRUE(is_folder(scratch.path()));
    EXPECT_NO_THROW(remove_file(scratch / "none"));
    EXPECT_EQ(names_in(scratch.path()), std::vector<std::string>{"loop"});
}

TEST(Checksum, PartsOfAFileSumUp) {
    const Scratch scratch;
    std::string bytes(100003, 'a');
    for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(i * i % 251);
    write_file(scratch / "a", bytes);
    const auto n = static_cast<Index>(bytes.size());
    EXPECT_EQ(checksum_of_file(scratch / "a", {0, n}), checksum_of(bytes));
    EXPECT_EQ(
        checksum_of_file(scratch / "a", {0, 4096}) + checksum_of_file(scratch / "a", {4096, n}),
        checksum_of(bytes));
}

TEST(Safetensors, RefusesWhateverDoesNotAddUp) {
    const Scratch scratch;
    const std::string path = scratch / "m.safetensors";
    const auto refused = [&](const std::string& bytes) {
        write_file(path, bytes);
        const std::string message = message_of<UserError>([&] { SafetensorsFile unused(path); });
        EXPECT_EQ(message.find(path), 0U) << message;
        return message;
    };
    const auto one = [&](const std::string& entry, const std::string& data) {
        return refused(safetensors("{\"a\":" + entry + "}", data));
    };
    const auto says = [](const std::string& message, const std::string& part) {
        EXPECT_NE(message.find(part), std::string::npos) << message;
    };
    says(refused("1234"), "too few");
    says(refused(std::string(100, '\xff')), "not a safetensors file");
    says(refused(safetensors(std::string(50, ' '), "").substr(0, 30)), "it is cut");
    says(refused(safetensors("[1]", "")), "the header:1:1: [1], expected an object");
    says(one(R"({"dtype":"F32","shape":[2]})", "12345678"),
         "tensor \"a\" data_offsets is missing, expected a list");
    says(one(R"({"dtype":"F32","shape":[3],"data_offsets":[0,8]})", "12345678"), "does not take");
    says(one(R"({"dtype":"F32","shape":[-2],"data_offsets":[0,8]})", "12345678"),
         "tensor \"a\" shape[0] = -2, expected a whole number from 0");
    says(one(R"({"dtype":"F32","shape":[2],"data_offsets":[8,0]})", "12345678"), "ascending");
    says(one(R"({"dtype":"F32","shape":[2],"data_offsets":[0,8]})", "123456"), "it is cut");
    says(one(R"({"dtype":"F32","shape":[1],"data_offsets":[4,8]})", "12345678"), "hole");
    says(one(R"({"dtype":"F32","shape":[1],"data_offsets":[0,4]})", "12345678"),
         "but the file has");
    says(one(R"({"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,8]})", "12345678"),
         "does not take");
    says(refused(safetensors(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
                             R"("b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}})",
                             "123456")),
         "overlap");
    write_file(
        path, safetensors(R"({"a":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}})", "12345678"));
    EXPECT_EQ(message_of<UserError>([&] { SafetensorsFile(path).read("a"); }),
              path + ": tensor \"a\" is I64, expected F64, F32, F16 or BF16");
}

}  // namespace
}  // namespace clt

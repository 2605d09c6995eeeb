// Job files: every kind of problem with its message, several at once, overrides, paths, and the way
// back from the resolved text.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "app/did_you_mean.hpp"
#include "app/job_file.hpp"
#include "clt/train/config.hpp"

namespace clt {
namespace {

/// A job of every type of key, small enough to see what comes out.
struct SampleTable {
    std::string name = "none";
    double rate = 0.5;
    bool flag = false;
    Index count = 7;
    TextList files;
    std::string folder;
    Index threads = 1;
    Index length = 10;

    template <class V>
    void fields(V& v) {
        v("name", name, rule::one_of({"none", "some", "all"}), "A choice");
        v("rate", rate, rule::between(0, 1), "A ratio");
        v("flag", flag, rule::any(), "A switch");
        v("count", count, rule::required() | rule::positive(), "A number of things");
        v("files", files, rule::path(), "Some files");
        v("folder", folder, rule::path(), "A folder");
        v("threads", threads, rule::at_least(1) | rule::execution(), "How it runs");
        v("length", length, rule::positive() | rule::free(), "How long it runs");
    }
};
struct SampleKind {
    std::string kind;

    template <class V>
    void fields(V& v) {
        v("kind", kind, rule::required() | rule::one_of({"sample", "train"}), "The subcommand");
    }
};
struct SampleJob {
    SampleKind job;
    SampleTable things;
    SampleTable others;

    template <class V>
    void tables(V& v) {
        v("job", job, "The job");
        v("things", things, "Things");
        v("others", others, "Things of which most do nothing here",
          {"name", "rate", "flag", "count", "files", "folder"});
    }
    template <class Report>
    void conflicts(Report& report) const {
        if (things.flag && things.rate == 0) report("things.rate", "flag needs a rate above 0");
    }
};

SampleJob read(const std::string& things, const std::vector<std::string>& overrides = {},
               const std::string& path = "jobs/a.toml") {
    return read_job<SampleJob>({path, "[job]\nkind = \"sample\"\n[things]\n" + things, overrides},
                               "sample");
}

/// The message of what read() throws.
template <class Read>
std::string problems(Read&& read_it) {
    try {
        read_it();
    } catch (const UserError& e) {
        return e.what();
    }
    return "nothing thrown";
}
std::string problems_of(const std::string& things, const std::vector<std::string>& overrides = {}) {
    return problems([&] { read(things, overrides); });
}

TEST(Job, ReadsEveryType) {
    const SampleJob job =
        read("name = \"all\"\nrate = 1\nflag = true\ncount = 1_000\nfiles = [\"x\", \"/y\"]\n");
    EXPECT_EQ(job.things.name, "all");
    EXPECT_EQ(job.things.rate, 1.0);  // an integer where a float is expected
    EXPECT_TRUE(job.things.flag);
    EXPECT_EQ(job.things.count, 1000);
    EXPECT_EQ(job.things.files, (TextList{"jobs/x", "/y"}));
    EXPECT_EQ(job.things.folder, "");  // no value: no folder, not the job's
    EXPECT_EQ(job.things.threads, 1);
}

TEST(Job, OneProblemOneLine) {
    const std::string type = "jobs/a.toml:4: things.";
    EXPECT_EQ(problems_of("count = \"7\""), type + "count = '7': expected an integer above 0");
    EXPECT_EQ(problems_of("count = 7.0"),
              type + "count = 7.0: expected an integer above 0; write 7");
    EXPECT_EQ(problems_of("count = 7.5"), type + "count = 7.5: expected an integer above 0");
    EXPECT_EQ(problems_of("count = inf"), type + "count = inf: expected an integer above 0");
    EXPECT_EQ(problems_of("rate = inf\ncount = 1"),
              type + "rate = inf: expected a number from 0 to 1");
    EXPECT_EQ(problems_of("count = 0"), type + "count = 0: expected an integer above 0");
    EXPECT_EQ(problems_of("rate = true\ncount = 1"),
              type + "rate = true: expected a number from 0 to 1");
    EXPECT_EQ(problems_of("rate = 1.5\ncount = 1"),
              type + "rate = 1.5: expected a number from 0 to 1");
    EXPECT_EQ(problems_of("rate = nan\ncount = 1"),
              type + "rate = nan: expected a number from 0 to 1");
    EXPECT_EQ(problems_of("flag = 1\ncount = 1"), type + "flag = 1: expected true or false");
    EXPECT_EQ(problems_of("name = \"al\"\ncount = 1"),
              type + "name = 'al': expected one of \"none\", \"some\", \"all\"");
    EXPECT_EQ(problems_of("files = \"x\"\ncount = 1"),
              type + "files = 'x': expected a list of paths in quotes");
    EXPECT_EQ(problems_of("files = [1]\ncount = 1"),
              type + "files = [ 1 ]: expected a list of paths in quotes");
    EXPECT_EQ(problems_of("coutn = 3\ncount = 1"),
              "jobs/a.toml:4: unknown key things.coutn; did you mean count?");
    EXPECT_EQ(problems_of("kind = 3\ncount = 1"),
              "jobs/a.toml:4: unknown key things.kind; did you mean kind in [job]?");
    EXPECT_EQ(problems_of("somethingelse = 3\ncount = 1"),
              "jobs/a.toml:4: unknown key things.somethingelse");
    EXPECT_EQ(problems_of("count = 1\n[thing]\n"),
              "jobs/a.toml:5: unknown table [thing]; did you mean things?");
    EXPECT_EQ(problems_of("rate = 0.1"),
              "jobs/a.toml: things.count is missing; expected an integer above 0 (A number of "
              "things)");
    EXPECT_EQ(problems_of("count = 1\nflag = true\nrate = 0"),
              "jobs/a.toml: things.rate: flag needs a rate above 0");
}

TEST(Job, ProblemsOfTheWholeFile) {
    const auto raw = [](const std::string& text) {
        return problems([&] { read_job<SampleJob>({"a.toml", text, {}}, "sample"); });
    };
    EXPECT_EQ(raw("count = 3\n[job]\nkind = \"sample\"\n[things]\ncount = 1"),
              "a.toml:1: count stands outside of any table; did you mean count in [things]?");
    EXPECT_EQ(raw("[job]\nkind = \"sample\"\n[[things]]\ncount = 1"),
              "a.toml:3: [[things]] is a list; expected one table [things]\n"
              "a.toml: things.count is missing; expected an integer above 0 (A number of things)");
    // Of a job for another command only that is said, not that its tables are unknown.
    EXPECT_EQ(raw("[job]\nkind = \"train\"\n[model]\nk = 1"),
              "a.toml:2: job.kind = \"train\", but this command runs jobs of kind \"sample\"");
    const std::string syntax = raw("[job]\nkind = = 3");
    EXPECT_TRUE(syntax.starts_with("a.toml:2:")) << syntax;
    EXPECT_NE(syntax.find("not valid TOML"), std::string::npos) << syntax;
    EXPECT_EQ(syntax.find('\n'), std::string::npos) << syntax;
}

TEST(Job, AllProblemsAtOnceInTheOrderOfTheFile) {
    EXPECT_EQ(problems_of("rate = 2\nnam = \"all\"\nflag = 0", {"things.count=-1", "thing.x=1"}),
              "jobs/a.toml:4: things.rate = 2: expected a number from 0 to 1\n"
              "jobs/a.toml:5: unknown key things.nam; did you mean name?\n"
              "jobs/a.toml:6: things.flag = 0: expected true or false\n"
              "--set: unknown table [thing]; did you mean things?\n"
              "--set: things.count = -1: expected an integer above 0");
}

TEST(Job, OverridesAreTypedAndCheckedLikeTheFile) {
    // A value in the file that is overridden does not count, even when it is wrong.
    const SampleJob job = read(
        "count = 0\nname = \"none\"",
        {"things.count=3", "things.count=4", "things.name=some", "things.rate=1e-1",
         "things.flag=true", "things.files=[\"x\", \"../y\"]", "things.folder=here/../there/"});
    EXPECT_EQ(job.things.count, 4);  // the last one wins
    EXPECT_EQ(job.things.name, "some");
    EXPECT_EQ(job.things.rate, 0.1);
    EXPECT_TRUE(job.things.flag);
    EXPECT_EQ(job.things.files, (TextList{"x", "../y"}));  // from the working folder
    EXPECT_EQ(job.things.folder, "there");
    EXPECT_EQ(read("count = 1", {"things.name=\"all\""}).things.name, "all");
    EXPECT_EQ(read("count = 1", {"things.folder=123"}).things.folder, "123");

    EXPECT_EQ(problems_of("count = 1", {"things.count=many"}),
              "--set: things.count = 'many': expected an integer above 0");
    EXPECT_EQ(problems_of("count = 1", {"things.count"}),
              "--set: \"things.count\": expected table.key=value");
    EXPECT_EQ(problems_of("count = 1", {"things.cuont=3"}),
              "--set: unknown key things.cuont; did you mean count?");
}

TEST(Job, OverridesThatAShellMakes) {
    const auto read_with = [](const std::string& override) {
        return read("count = 1\nfolder = \"x\"", {override}).things;
    };
    EXPECT_EQ(read_with("things.folder=").folder, "");
    EXPECT_EQ(read_with("things.folder=a=b.c").folder, "a=b.c");
    EXPECT_EQ(read_with("things.folder=\u00fcn\u00ef").folder, "\u00fcn\u00ef");
    EXPECT_EQ(read_with("things.folder=\"a b\"").folder, "a b");
    EXPECT_EQ(read_with("things.folder=\"open").folder, "\"open");
    EXPECT_EQ(read_with("things.count = 3").count, 3);
    EXPECT_EQ(read_with(" things.folder = a b ").folder, "a b");
    const std::string set = "--set: ";
    EXPECT_EQ(problems_of("count = 1", {"things.count="}),
              set + "things.count = '': expected an integer above 0");
    EXPECT_EQ(problems_of("count = 1", {"things.count=3\nthings.rate=1"}),
              set + "things.count = '''3 things.rate=1''': expected an integer above 0");
    EXPECT_EQ(problems_of("count = 1", {"things.count=64.0"}),
              set + "things.count = 64.0: expected an integer above 0; write 64");
    EXPECT_EQ(problems_of("count = 1", {"things.files=x"}),
              set + "things.files = 'x': expected a list of paths in quotes");
    EXPECT_EQ(problems_of("count = 1", {"=3"}), set + "\"=3\": expected table.key=value");
    const std::string latin1 = problems_of("count = 1", {"things.folder=caf\xE9"});
    EXPECT_TRUE(latin1.starts_with(set + "things.folder = ")) << latin1;
    EXPECT_NE(latin1.find("is not UTF-8"), std::string::npos) << latin1;
}

TEST(Job, AKeyGivenTwiceNamesBothLines) {
    const std::string key = problems_of("count = 1\nrate = 0.5\ncount = 2");
    EXPECT_TRUE(key.starts_with("jobs/a.toml:6:")) << key;
    EXPECT_TRUE(key.ends_with("'count'; first given in line 4")) << key;
    const std::string table = problems_of("count = 1\n[others]\nlength = 3\n[things]\nrate = 1");
    EXPECT_TRUE(table.starts_with("jobs/a.toml:7:")) << table;
    EXPECT_TRUE(table.ends_with("'things'; first given in line 3")) << table;
    const std::string within = problems_of("count = 1\nfiles = [\n{a = 1, a = 2}\n]");
    EXPECT_TRUE(within.starts_with("jobs/a.toml:6:")) << within;
}

// What editors and mistakes make of a job file. None of it reaches the parser's words on
// characters.
TEST(Job, FilesThatAreNoJob) {
    const auto problems_in = [](const std::string& text) {
        return problems([&] { read_job<SampleJob>({"a.toml", text, {}}, "sample"); });
    };
    const std::string job = "[job]\nkind = \"sample\"\n[things]\ncount = 1\n";
    EXPECT_EQ(problems_in(job), "nothing thrown");
    EXPECT_EQ(problems_in("\xEF\xBB\xBF" + job), "nothing thrown");
    std::string lines;
    std::string utf16 = "\xFF\xFE";
    for (const char c : job) {
        lines += c == '\n' ? "\r\n" : std::string(1, c);
        utf16 += {c, '\0'};
    }
    EXPECT_EQ(problems_in(lines), "nothing thrown");
    EXPECT_EQ(
        problems_in(utf16),
        "a.toml: is UTF-16 text (little endian): save it as UTF-8, expected a TOML file in UTF-8");
    EXPECT_EQ(problems_in(job + "name = \"caf\xE9\"\n"),
              "a.toml:5: byte 0xE9 is not UTF-8; save the file as UTF-8");
    EXPECT_EQ(problems_in(job + std::string("\0", 1)),
              "a.toml:5: has a byte 0, expected a TOML file");
    EXPECT_EQ(problems_in("\x89HDF\r\n\x1A\n"),
              "a.toml: is an HDF5 file, expected a TOML file in UTF-8");
    EXPECT_NE(problems_in("").find("job.kind is missing"), std::string::npos);
}

std::string repeated(const std::string& text, int times) {
    std::string all;
    for (int i = 0; i < times; ++i) all += text;
    return all;
}

// Nesting that would end the stack, in every form that nests.
TEST(Job, DeepNestingIsRefused) {
    const auto problems_in = [](const std::string& text) {
        return problems([&] { read_job<SampleJob>({"a.toml", text, {}}, "sample"); });
    };
    constexpr int deep = 100'000;
    const std::string keys = repeated("a.", deep);
    for (const std::string& text : {fmt::format("{}a = 1", keys), fmt::format("[{}a]", keys),
                                    fmt::format("[[{}a]]", repeated("a . ", deep)),
                                    fmt::format("{}a = 1", repeated("\"a\".", deep)),
                                    fmt::format("x = {{y = \"\"\"a\"\"\"\"\", {}a = 1}}", keys)})
        EXPECT_EQ(problems_in(text),
                  "a.toml: more than 1000 points outside of texts; expected table.key = value")
            << text.substr(0, 40);
    for (const char* open : {"[", "{a=", "[{a=", "[[{a=[["}) {
        const std::string message = problems_in(fmt::format("x = {}", repeated(open, deep)));
        EXPECT_TRUE(message.starts_with("a.toml:")) << message;
    }
    // Points in texts and comments are none.
    EXPECT_EQ(problems_of(fmt::format("count = 1\nfolder = \"{}\"  # {}", repeated("../", 500),
                                      repeated("...", 500))),
              "nothing thrown");
    const std::string set = problems_of("count = 1", {fmt::format("things.count={{{}a=1}}", keys)});
    EXPECT_NE(set.find("things.count = "), std::string::npos) << set;
}

TEST(Job, PathsStartAtTheJobFile) {
    const std::string things = "count = 1\nfolder = \"../data/x\"";
    EXPECT_EQ(read(things, {}, "jobs/small/a.toml").things.folder, "jobs/data/x");
    EXPECT_EQ(read(things, {}, "a.toml").things.folder, "../data/x");
    EXPECT_EQ(read(things, {}, "/srv/jobs/a.toml").things.folder, "/srv/data/x");
    EXPECT_EQ(read("count = 1\nfolder = \".\"", {}, "jobs/a.toml").things.folder, "jobs");
    EXPECT_EQ(read("count = 1\nfolder = \".\"", {}, "a.toml").things.folder, ".");
}

TEST(Job, ResolvedTextRunsTheSameJob) {
    SampleJob job = read(
        "name = \"all\"\nrate = 1e-8\nflag = true\ncount = 3\n"
        "files = ['a \"b\"\\c', \"d\\te\"]\nfolder = \"out\"");
    const std::string text = resolved_text(tables_of(job));
    // From a file elsewhere, so paths must have become absolute.
    auto again = read_job<SampleJob>({"/elsewhere/job.resolved.toml", text, {}}, "sample");
    EXPECT_EQ(again.things.name, "all");
    EXPECT_EQ(again.things.rate, 1e-8);
    EXPECT_TRUE(again.things.flag);
    EXPECT_EQ(again.things.count, 3);
    const std::string here = std::filesystem::current_path().string();
    EXPECT_EQ(again.things.files, (TextList{here + "/jobs/a \"b\"\\c", here + "/jobs/d\te"}));
    EXPECT_EQ(again.things.folder, here + "/jobs/out");
    EXPECT_EQ(resolved_text(tables_of(again)), text);
}

TEST(Job, KeysThatDoNothingInAKindOfJobAreUnknown) {
    EXPECT_EQ(problems_of("count = 1\n[others]\nthreads = 2\ncount = 2"),
              "jobs/a.toml:7: unknown key others.count; did you mean count in [things]?");
    SampleJob job;
    EXPECT_EQ(resolved_text(tables_of(job)).find("[others]\nthreads"),
              resolved_text(tables_of(job)).find("[others]"));
}

TEST(Job, DifferenceNamesWhatChangesTheResult) {
    SampleJob before = read("count = 3\nthreads = 1");
    SampleJob now = read("count = 4\nthreads = 8\nflag = true\nlength = 20");
    SampleJob defaults;
    const auto texts = [&](const std::string& from, const std::string& to) {
        std::vector<std::string> changes;
        for (const FieldChange& change : difference(from, to, tables_of(defaults)))
            changes.push_back((change.role == Role::free ? "free " : "") + change.text());
        return changes;
    };
    const std::string old_text = resolved_text(tables_of(before));
    const std::string new_text = resolved_text(tables_of(now));
    EXPECT_EQ(texts(old_text, old_text), std::vector<std::string>{});
    EXPECT_EQ(texts(old_text, new_text),
              (std::vector<std::string>{"things.flag (true, was false)", "things.count (4, was 3)",
                                        "free things.length (20, was 10)"}));
    // A key that an older program did not know had its default's behaviour.
    EXPECT_EQ(
        texts("[things]\ncount = 4\nlength = 20", new_text),
        (std::vector<std::string>{"job.kind ('sample', was '')", "things.flag (true, was false)"}));
}

// What issue 8 promises: the data set may lie elsewhere; grid, evaluation, checkpoint and log keys
// may change; every other change is refused, but for the free ones.
TEST(Job, RolesOfATrainJob) {
    TrainJob job;
    for (const JobTable& table : tables_of(job)) {
        for (const JobField& field : table.fields) {
            const std::string key = table.name + "." + field.name;
            const auto is_one_of = [&](const TextList& names) {
                return std::find(names.begin(), names.end(), key) != names.end() ||
                       std::find(names.begin(), names.end(), table.name) != names.end();
            };
            if (is_one_of({"job.backend", "schedule.steps", "schedule.horizon"})) {
                EXPECT_EQ(field.rule.role, Role::free) << key;
            } else if (is_one_of({"grid", "evaluation", "checkpoint", "log", "job.output",
                                  "data.path", "data.evaluation_path", "data.prefetch"})) {
                EXPECT_EQ(field.rule.role, Role::execution) << key;
            } else if (is_one_of({"job", "model", "loss", "optimizer", "schedule",
                                  "data.batch_tokens", "data.normalization", "data.sampling",
                                  "data.window_tokens", "data.holdout_fraction"})) {
                EXPECT_EQ(field.rule.role, Role::input) << key;
            }
        }
    }
}

// What a kernel would take for 0 or infinity in float32, and counts whose products do not fit.
TEST(Job, NumbersOfATrainJobHaveBounds) {
    const std::string text =
        "[job]\nkind = \"train\"\noutput = \"o\"\n[data]\npath = \"d\"\n[model]\nfeatures = 8\n"
        "k = 4\n[schedule]\nsteps = 10\n";
    const auto with = [&](const std::string& override_) {
        return problems([&] { read_job<TrainJob>({"t.toml", text, {override_}}, "train"); });
    };
    for (const char* key : {"optimizer.learning_rate", "optimizer.epsilon", "model.bandwidth",
                            "model.threshold", "loss.sparsity_scale", "schedule.start_factor"})
        for (const char* value : {"1e-46", "1e300", "0", "-0.0", "nan"})
            EXPECT_EQ(with(fmt::format("{}={}", key, value)).find("--set: " + std::string(key)), 0U)
                << key << value;
    for (const char* key : {"optimizer.weight_decay", "optimizer.gradient_clip", "loss.sparsity",
                            "loss.preactivation", "schedule.end_factor", "schedule.minimum"})
        EXPECT_NE(with(fmt::format("{}=1e300", key)).find("expected a number from 0 to 1e+37"),
                  std::string::npos)
            << key;
    EXPECT_EQ(with("optimizer.gradient_clip=1e-300"),
              "t.toml: optimizer.gradient_clip: 1e-300 is 0 in float32, so nothing would be "
              "learned; 0 means no clipping");
    EXPECT_EQ(with("optimizer.weight_decay=2000"),
              "t.toml: optimizer.weight_decay: a step takes learning_rate * weight_decay of a "
              "weight, which is 2 and would be more than all of it");
    EXPECT_EQ(with("schedule.warmup_steps=11"),
              "t.toml: schedule.warmup_steps: 11 steps of warm-up are more than the 10 that the "
              "schedule has");
    for (const char* key :
         {"model.features", "data.batch_tokens", "schedule.steps", "data.window_tokens",
          "grid.data", "grid.feature", "schedule.warmup_steps", "data.prefetch"})
        EXPECT_EQ(with(fmt::format("{}=9223372036854775807", key))
                      .find(fmt::format("--set: {} = 9223372036854775807: expected an integer from",
                                        key)),
                  0U)
            << key;
    const TrainJob job =
        read_job<TrainJob>({"t.toml", text, {"optimizer.weight_decay=-0.0"}}, "train");
    EXPECT_FALSE(std::signbit(job.optimizer.weight_decay));
}
TEST(Job, TrainJobNeedsKForTopK) {
    const std::string text =
        "[job]\nkind = \"train\"\noutput = \"o\"\n[data]\npath = \"d\"\n[model]\nfeatures = 8\n"
        "[schedule]\nsteps = 1\n";
    const auto with = [&](std::vector<std::string> overrides) {
        return problems([&] { read_job<TrainJob>({"t.toml", text, overrides}, "train"); });
    };
    EXPECT_EQ(with({}), "t.toml: model.k: batchtopk needs k above 0");
    EXPECT_EQ(with({"model.k=8"}), "nothing thrown");
    EXPECT_EQ(with({"model.activation=relu"}), "nothing thrown");
    EXPECT_EQ(with({"model.activation=topk", "model.k=1.5"}),
              "t.toml: model.k: topk needs a whole number or a fraction below 1, not 1.5");
    EXPECT_EQ(with({"model.k=8", "data.evaluation_path=x", "data.holdout_fraction=0.1"}),
              "t.toml: data.evaluation_path: stands in place of data.holdout_fraction; give only "
              "one of them");
}

TEST(DidYouMean, CountsEditsAndSwaps) {
    EXPECT_EQ(edit_distance("", "abc"), 3U);
    EXPECT_EQ(edit_distance("steps", "steps"), 0U);
    EXPECT_EQ(edit_distance("setps", "steps"), 1U);
    EXPECT_EQ(edit_distance("step", "steps"), 1U);
    EXPECT_EQ(edit_distance("normalisation", "normalization"), 1U);
    EXPECT_EQ(edit_distance("kitten", "sitting"), 3U);
    EXPECT_EQ(did_you_mean("xyz", {"steps", "kind"}), "");
    EXPECT_EQ(did_you_mean("lernig_rate", {"steps", "learning_rate"}),
              "; did you mean learning_rate?");
}

}  // namespace
}  // namespace clt

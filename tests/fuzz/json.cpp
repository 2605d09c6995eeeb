// JSON that is not ours: parsed, shown in a message, and looked up by type.
#include "clt/io/json.hpp"

#include <nlohmann/json.hpp>

#include "fuzz.hpp"

CLT_FUZZ_TARGET(bytes) {
    clt::fuzz::refusable([&] { clt::shown(clt::parse_json(bytes, "a.json")); });
    clt::fuzz::refusable([&] {
        const clt::JsonObject object = clt::JsonObject::parse(bytes, "a.json");
        for (const auto& item : object.json().items()) {
            const std::string& key = item.key();
            clt::fuzz::refusable([&] { object.integer(key, 0); });
            clt::fuzz::refusable([&] { object.finite(key); });
            clt::fuzz::refusable([&] { object.text(key); });
            clt::fuzz::refusable([&] { object.flag(key); });
            clt::fuzz::refusable([&] { object.object(key).finite_or("a", 0); });
            clt::fuzz::refusable([&] { object.objects(key); });
            clt::fuzz::refusable([&] { object.integers(key); });
            clt::fuzz::refusable([&] { object.floats(key, 3, "d_model"); });
        }
    });
}

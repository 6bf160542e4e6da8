// hostile.cpp - condinst.hpp: wrong calls are exceptions, and owners that were moved from are safe.
//
//   hostile_cpp MODEL IMAGE

#include <condinst.hpp>
#include <cstdio>
#include <functional>

static int wrong = 0;

static void expect(int line, condinst_status status, const std::string &word,
                   const std::function<void()> &call) {
    try {
        call();
        std::fprintf(stderr, "line %d: nothing thrown\n", line);
    } catch (const condinst::Error &error) {
        const std::string text = error.what();
        if (error.status() == status && text.find(word) != std::string::npos) return;
        std::fprintf(stderr, "line %d: %d, %s\n", line, error.status(), error.what());
    }
    wrong = 1;
}
#define EXPECT(status, word, ...) expect(__LINE__, status, word, [&] { __VA_ARGS__; })

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    const std::string path = argv[1], file = argv[2], zero(1, '\0');
    condinst::Options options;
    options.device = "cpu" + zero;
    EXPECT(CONDINST_BAD_ARGUMENT, "after cpu.", condinst::Model(path, options));
    EXPECT(CONDINST_BAD_MODEL, "zero byte", condinst::Model(path + zero + "x"));
    EXPECT(CONDINST_BAD_MODEL, "empty", condinst::Model(""));
    EXPECT(CONDINST_BAD_MODEL, "\\xe9t\\xe9.onnx does not exist",
           condinst::Model("/\xe9t\xe9.onnx"));
    condinst::Model model(path);
    EXPECT(CONDINST_BAD_INPUT, "zero byte", model.read(file + zero));
    EXPECT(CONDINST_BAD_INPUT, "\\xe9t\\xe9.png", model.read("\xe9t\xe9.png"));
    EXPECT(CONDINST_BAD_ARGUMENT, "n is 0", model.find(condinst::Span<const condinst::Image>{}));
    EXPECT(CONDINST_BAD_ARGUMENT, "data of image 0", model.find(condinst::Image{}));
    condinst::Picture picture = model.read(file);
    condinst::Picture moved = std::move(picture);
    EXPECT(CONDINST_BAD_ARGUMENT, "data of image 0", model.find(picture.image()));
    condinst::Result result = model.find(moved.image());
    EXPECT(CONDINST_BAD_ARGUMENT, "map is NULL", result.paint(0, 1, nullptr, 1000));
    condinst::Model owner = std::move(model);
    EXPECT(CONDINST_BAD_ARGUMENT, "model is NULL", model.find(moved.image()));
    if (owner.find(moved.image()).size() != result.size() || result.empty()) wrong = 1;
    return wrong;
}

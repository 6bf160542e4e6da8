// threads.cpp - calls per second with one model and 1, 2 and 4 threads, or as many as are named.
//
//   c++ -std=c++17 -pthread threads.cpp $(condinst capi --include --libs) -o threads
//   ./threads model.onnx street.jpg [CALLS [THREADS ...]]
//
// Each thread looks at a part of the picture of its own, by pointer and stride, and compares every
// result with what a call without company found there.

#include <chrono>
#include <condinst.hpp>
#include <cstring>
#include <iostream>
#include <thread>

// Part `i` of the picture: all but some columns on the left and rows at the top; not a copy.
static condinst::Image part(const condinst::Image &image, int i) {
    const int left = i % 8 * (image.width / 32), top = i / 8 % 8 * (image.height / 32);
    return {image.data + top * image.stride + left * 3, image.width - left, image.height - top,
            image.stride, CONDINST_BGR};
}

static bool equal(const condinst::Result &a, const condinst::Result &b) {
    if (a.size() != b.size()) return false;
    const std::size_t n = a.size();
    bool same = n == 0 || !std::memcmp(a.boxes().data(), b.boxes().data(), n * sizeof(float[4]));
    same = same && (n == 0 || !std::memcmp(a.scores().data(), b.scores().data(), n * 4));
    for (std::size_t i = 0; same && i < n; i++)
        same = std::strcmp(a.masks()[i].rle, b.masks()[i].rle) == 0;
    return same;
}

// Seconds for `calls` calls in each of `count` threads, and how many results were wrong.
static std::pair<double, int> run(const condinst::Model &model, const condinst::Image &image,
                                  int count, int calls) {
    std::vector<condinst::Result> alone;
    for (int i = 0; i < count; i++) alone.push_back(model.find(part(image, i), CONDINST_RLE));
    std::vector<int> wrong(std::size_t(count), 0);
    std::vector<std::thread> threads;
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < count; i++)
        threads.emplace_back([&, i] {
            for (int call = 0; call < calls; call++) try {
                    const auto found = model.find(part(image, i), CONDINST_RLE);
                    wrong[std::size_t(i)] += !equal(found, alone[std::size_t(i)]);
                } catch (const std::exception &error) {
                    std::cerr << error.what() << "\n";
                    wrong[std::size_t(i)]++;
                }
        });
    for (auto &thread : threads) thread.join();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    int sum = 0;
    for (int w : wrong) sum += w;
    return {seconds.count(), sum};
}

int main(int argc, char **argv) try {
    if (argc < 3)
        return std::cerr << "usage: " << argv[0] << " MODEL IMAGE [CALLS [THREADS ...]]\n", 2;
    const int calls = argc > 3 ? std::stoi(argv[3]) : 20;
    std::vector<int> counts{1, 2, 4};
    if (argc > 4) counts.clear();
    for (int i = 4; i < argc; i++) counts.push_back(std::stoi(argv[i]));
    condinst::Options options;
    options.threads = 1;  // of the model in each call
    const condinst::Model model(argv[1], options);
    const condinst::Picture picture = model.read(argv[2]);
    int all = 0;
    for (int count : counts) {
        const auto [seconds, wrong] = run(model, picture.image(), count, calls);
        std::cout << count << " threads: " << count * calls / seconds << " calls per second, "
                  << wrong << " wrong\n";
        all += wrong;
    }
    return all != 0;
} catch (const std::exception &error) {
    std::cerr << error.what() << "\n";
    return 1;
}

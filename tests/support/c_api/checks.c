/* checks.c - what condinst.h promises, in a program that does not run Python itself.

   checks refuse MODEL IMAGE FOLDER   wrong arguments and missing things; FOLDER has no Python
   checks endure MODEL CALLS          many calls and models; prints the growth of memory in KiB
   checks open MODEL [PYTHON]         prints status and text of opening it
   checks starve MODEL IMAGE          every allocation fails once; needs blocks.c */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <locale.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "expect.h"

static int python_runs(void) {
    void *symbol = dlsym(RTLD_DEFAULT, "Py_IsInitialized");
    int (*function)(void);
    memcpy(&function, &symbol, sizeof function);
    return function();
}

static void *text_of_another_thread(void *unused) {
    (void)unused;
    return (void *)(uintptr_t)(condinst_last_error()[0] == '\0');
}

static void refuse_before_python(const char *path, const char *folder) {
    condinst_model *model = (condinst_model *)(uintptr_t)1;
    condinst_options options = condinst_default_options();
    SURE(condinst_abi() == CONDINST_ABI && condinst_last_error()[0] == '\0');
    EXPECT(condinst_open(NULL, NULL, &model), CONDINST_BAD_ARGUMENT, "path is NULL");
    SURE(model == NULL);
    EXPECT(condinst_open(path, NULL, NULL), CONDINST_BAD_ARGUMENT, "model is NULL");
    options.threads = -1;
    EXPECT(condinst_open(path, &options, &model), CONDINST_BAD_ARGUMENT, "threads is -1");
    options = condinst_default_options();
    options.score_threshold = NAN;
    EXPECT(condinst_open(path, &options, &model), CONDINST_BAD_ARGUMENT, "from 0 to 1");
    options = condinst_default_options();
    options.python = folder;
    EXPECT(condinst_open(path, &options, &model), CONDINST_PYTHON, "bin/python of a virtual");
    options.python = "/no/such/venv/bin/python";
    EXPECT(condinst_open(path, &options, &model), CONDINST_PYTHON, "/no/such/venv/bin/python");
    condinst_result *result;
    EXPECT(condinst_find(NULL, NULL, 1, CONDINST_BITS, &result), CONDINST_BAD_ARGUMENT, "model");
    condinst_close(NULL);
    condinst_result_free(NULL);
    condinst_image_free(NULL);
    SURE(!python_runs());
}

static void refuse_models(const char *path, const char *image) {
    condinst_model *model;
    condinst_options options = condinst_default_options();
    EXPECT(condinst_open("/no/model.onnx", NULL, &model), CONDINST_BAD_MODEL, "does not exist");
    EXPECT(condinst_open(image, NULL, &model), CONDINST_BAD_MODEL, "must end in .onnx");
    SURE(model == NULL);
    options.runtime = "abacus\xff";
    EXPECT(condinst_open(path, &options, &model), CONDINST_BAD_ARGUMENT, "abacus");
    options = condinst_default_options();
    options.score_threshold = 0.01f;
    EXPECT(condinst_open(path, &options, &model), CONDINST_BAD_ARGUMENT, "lowest score");
    options = condinst_default_options();
    options.python = "/bin/sh";
    EXPECT(condinst_open(path, &options, &model), CONDINST_PYTHON, "only one Python");
}

static void refuse_images(condinst_model *model) {
    static uint8_t pixels[8 * 8 * 3];
    const condinst_image good = {pixels, 8, 8, 24, CONDINST_BGR};
    const struct {
        condinst_image image;
        condinst_status status;
        const char *word;
    } bad[] = {
        {{NULL, 8, 8, 24, CONDINST_BGR}, CONDINST_BAD_ARGUMENT, "data of image 1 is NULL"},
        {{pixels, 0, 8, 24, CONDINST_BGR}, CONDINST_BAD_ARGUMENT, "0 x 8"},
        {{pixels, 8, 0, 24, CONDINST_BGR}, CONDINST_BAD_ARGUMENT, "8 x 0"},
        {{pixels, -8, 8, 24, CONDINST_BGR}, CONDINST_BAD_ARGUMENT, "-8 x 8"},
        {{pixels, 8, 8, 23, CONDINST_BGR}, CONDINST_BAD_ARGUMENT, "stride of image 1 is 23"},
        {{pixels, 8, 8, 31, CONDINST_RGBA}, CONDINST_BAD_ARGUMENT, "has 32"},
        {{pixels, 8, 8, -24, CONDINST_BGR}, CONDINST_BAD_ARGUMENT, "-24"},
        {{pixels, 8, 8, PTRDIFF_MAX / 4, CONDINST_BGR}, CONDINST_BAD_ARGUMENT, "memory"},
        {{pixels, 8, 8, 24, 5}, CONDINST_BAD_ARGUMENT, "channels of image 1 is 5"},
        {{pixels, 8, 8, 24, -1}, CONDINST_BAD_ARGUMENT, "channels"},
        /* refused by size, before anything is read */
        {{pixels, 50000, 50000, 150000, CONDINST_BGR}, CONDINST_BAD_INPUT, "more than the limit"},
    };
    condinst_result *results[2];
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        const condinst_image images[2] = {good, bad[i].image};
        results[0] = results[1] = (condinst_result *)(uintptr_t)1;
        EXPECT(condinst_find(model, images, 2, CONDINST_BITS, results), bad[i].status, bad[i].word);
        SURE(results[0] == NULL && results[1] == NULL);
    }
    EXPECT(condinst_find(model, &good, 0, CONDINST_BITS, results), CONDINST_BAD_ARGUMENT, "n is 0");
    EXPECT(condinst_find(model, NULL, 1, CONDINST_BITS, results), CONDINST_BAD_ARGUMENT, "images");
    EXPECT(condinst_find(model, &good, 1, CONDINST_BITS, NULL), CONDINST_BAD_ARGUMENT, "results");
    EXPECT(condinst_find(model, &good, 1, (condinst_mask_format)3, results), CONDINST_BAD_ARGUMENT,
           "format is 3");
    EXPECT(condinst_panoptic(model, &good, 1, CONDINST_BITS, results), CONDINST_BAD_ARGUMENT,
           "no semantic branch");
    condinst_image image = good;
    EXPECT(condinst_read_image(model, "/no.png", &image), CONDINST_BAD_INPUT, "does not exist");
    SURE(image.data == NULL && image.width == 0);
    EXPECT(condinst_read_image(model, NULL, &image), CONDINST_BAD_ARGUMENT, "path");
    EXPECT(condinst_read_image(model, "/no.png", NULL), CONDINST_BAD_ARGUMENT, "image");
}

static void refuse_painting(condinst_model *model) {
    uint8_t pixels[64 * 64], map[64 * 64];
    memset(pixels, 255, sizeof pixels);
    const condinst_image image = {pixels, 64, 64, 64, CONDINST_GRAY};
    condinst_result *found = NULL;
    EXPECT(condinst_find(model, &image, 1, CONDINST_BITS, &found), CONDINST_OK, NULL);
    SURE(found != NULL && found->count == 1);
    EXPECT(condinst_mask_paint(found, 1, 1, map, 64), CONDINST_BAD_ARGUMENT, "index is 1");
    EXPECT(condinst_mask_paint(found, 0, 1, map, 63), CONDINST_BAD_ARGUMENT, "stride");
    EXPECT(condinst_mask_paint(found, 0, 1, NULL, 64), CONDINST_BAD_ARGUMENT, "map");
    EXPECT(condinst_mask_paint(NULL, 0, 1, map, 64), CONDINST_BAD_ARGUMENT, "result");
    condinst_result_free(found);
}

static int refuse(const char *path, const char *image, const char *folder) {
    struct sigaction before, after;
    sigaction(SIGINT, NULL, &before);
    refuse_before_python(path, folder);
    refuse_models(path, image);
    condinst_model *model = NULL;
    EXPECT(condinst_open(path, NULL, &model), CONDINST_OK, NULL);
    if (model == NULL) return 1;
    refuse_images(model);
    refuse_painting(model);
    condinst_close(model);
    pthread_t thread;
    void *empty = NULL;
    pthread_create(&thread, NULL, text_of_another_thread, NULL);
    pthread_join(thread, &empty);
    SURE(empty != NULL);
    sigaction(SIGINT, NULL, &after);
    SURE(before.sa_handler == after.sa_handler && python_runs());
    SURE(strcmp(setlocale(LC_ALL, NULL), "C") == 0);
    return wrong;
}

/* One call on a frame that is gone from memory right after it. */
static void find_and_forget(condinst_model *model, int call) {
    const size_t bytes = 256 * 256 * 4;
    uint8_t *frame = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(frame, 200, bytes / 2);
    const condinst_image image = {frame, 250, 250, 256 * 4, call % 5};
    condinst_result *found = NULL;
    EXPECT(condinst_find(model, &image, 1, (condinst_mask_format)(call % 3), &found), CONDINST_OK,
           NULL);
    munmap(frame, bytes);
    uint8_t *map = calloc(250, 250);
    SURE(found != NULL && found->count == 1 && strcmp(found->names[0], "person") == 0);
    if (found != NULL && map != NULL) {
        condinst_mask_paint(found, 0, 1, map, 250);
        SURE(map[0] == 1 && map[250 * 250 - 1] == 0);
    }
    free(map);
    condinst_result_free(found);
}

static int endure(const char *path, int calls) {
    condinst_model *model = NULL;
    long before = 0;
    EXPECT(condinst_open(path, NULL, &model), CONDINST_OK, NULL);
    for (int call = 0; model != NULL && call < calls + 100; call++) {
        if (call == 100) before = resident_kib();
        find_and_forget(model, call);
    }
    printf("%ld", resident_kib() - before);
    condinst_close(model);
    for (int turn = 0; turn < 20; turn++) {
        if (turn == 10) before = resident_kib();
        EXPECT(condinst_open(path, NULL, &model), CONDINST_OK, NULL);
        find_and_forget(model, turn);
        condinst_close(model);
    }
    printf(" %ld\n", resident_kib() - before);
    return wrong;
}

static int open_one(const char *path, const char *python) {
    condinst_model *model;
    condinst_options options = condinst_default_options();
    options.python = python;
    condinst_status status = condinst_open(path, &options, &model);
    printf("%s %s\n", condinst_status_name(status), status ? condinst_last_error() : "");
    condinst_close(model);
    return 0;
}

#ifdef BLOCKS
extern long blocks_live, blocks_until_failure; /* of blocks.c */

static int starve(const char *path, const char *file) {
    condinst_model *model = NULL;
    condinst_image image;
    blocks_until_failure = 1;
    EXPECT(condinst_open(path, NULL, &model), CONDINST_OUT_OF_MEMORY, "no memory");
    EXPECT(condinst_open("/no/model.onnx", NULL, &model), CONDINST_BAD_MODEL, NULL);
    SURE(blocks_live == 0);
    EXPECT(condinst_open(path, NULL, &model), CONDINST_OK, NULL);
    blocks_until_failure = 1;
    EXPECT(condinst_read_image(model, file, &image), CONDINST_OUT_OF_MEMORY, "no memory");
    EXPECT(condinst_read_image(model, file, &image), CONDINST_OK, NULL);
    const condinst_image two[2] = {image, image};
    condinst_result *found[2];
    blocks_until_failure = 2; /* the second result */
    EXPECT(condinst_find(model, two, 2, CONDINST_RLE, found), CONDINST_OUT_OF_MEMORY, "no memory");
    SURE(found[0] == NULL && found[1] == NULL && blocks_live == 2);
    EXPECT(condinst_find(model, two, 2, CONDINST_RLE, found), CONDINST_OK, NULL);
    condinst_close(model);
    SURE(strlen(found[1]->masks[0].rle) > 2); /* a result outlives its model */
    SURE(blocks_live == 3);
    condinst_result_free(found[0]);
    condinst_result_free(found[1]);
    condinst_image_free(&image);
    SURE(blocks_live == 0 && image.data == NULL);
    return wrong;
}
#endif

int main(int argc, char **argv) {
    if (argc == 5 && strcmp(argv[1], "refuse") == 0) return refuse(argv[2], argv[3], argv[4]);
    if (argc == 4 && strcmp(argv[1], "endure") == 0) return endure(argv[2], atoi(argv[3]));
    if (argc > 2 && strcmp(argv[1], "open") == 0) return open_one(argv[2], argv[3]);
#ifdef BLOCKS
    if (argc == 4 && strcmp(argv[1], "starve") == 0) return starve(argv[2], argv[3]);
#endif
    return 2;
}

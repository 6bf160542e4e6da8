/* hostile.c - wrong calls, odd names and hosts that do what hosts do, in a sanitized program.

   hostile arguments MODEL          each argument wrong in each way
   hostile paths MODEL WHAT PATH... opens (WHAT: open) or reads (read) each; a line with its status
   hostile cycles MODEL N           N times open, find, close; prints the growth of memory in KiB
   hostile threads MODEL            8 threads with one model, then 8 with one each
   hostile fork MODEL               a child before, and children after condinst_open
   hostile host MODEL               its signals, locale and closed streams stay its own */

#define _GNU_SOURCE
#include <float.h>
#include <limits.h>
#include <locale.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/lsan_interface.h>
#endif

#include "expect.h"

#define COUNT(table) (sizeof(table) / sizeof *(table))

enum { SIDE = 64, THREADS = 8, SECONDS = 240 };

static uint8_t pixels[SIDE * SIDE * 4];

static condinst_model *opened(const char *path) {
    condinst_model *model = NULL;
    EXPECT(condinst_open(path, NULL, &model), CONDINST_OK, NULL);
    if (model == NULL) _exit(3);
    return model;
}

/* Whether one object is found in all of a frame of one shade, with the shade as its score. */
static int is_found(condinst_model *model, const uint8_t *frame, int format) {
    const condinst_image image = {frame, SIDE, SIDE, SIDE, CONDINST_GRAY};
    condinst_result *result = NULL;
    if (condinst_find(model, &image, 1, (condinst_mask_format)format, &result) != CONDINST_OK)
        return 0;
    uint8_t map[SIDE * SIDE] = {0};
    const int whole = result->count == 1 && result->width == SIDE &&
                      condinst_mask_paint(result, 0, 7, map, SIDE) == CONDINST_OK && map[0] == 7 &&
                      map[SIDE * SIDE - 1] == 7;
    const int score = whole && fabsf(result->scores[0] - (float)frame[0] / 255) < 0.01f;
    condinst_result_free(result);
    return score;
}

/* One use of everything: leaks of Python's modules, which are imported once, do not count. */
static void warm_up(const char *path) {
#ifdef __SANITIZE_ADDRESS__
    __lsan_disable();
#endif
    condinst_model *model = opened(path);
    for (int format = CONDINST_BITS; format <= CONDINST_RLE; format++)
        SURE(is_found(model, pixels, format));
    condinst_image image;
    EXPECT(condinst_read_image(model, path, &image), CONDINST_BAD_INPUT, NULL);
    condinst_close(model);
#ifdef __SANITIZE_ADDRESS__
    __lsan_enable();
#endif
}

/* -- arguments --------------------------------------------------------------------------------- */

static void wrong_options(const char *path) {
    const condinst_options none = condinst_default_options();
    const int32_t numbers[] = {-1, INT32_MIN, INT32_MAX};
    const float scores[] = {NAN, -NAN, INFINITY, -INFINITY, -0.001f, 1.001f, FLT_MAX, -FLT_MAX};
    const char *texts[] = {"",         " ",     "abacus", "cuda:-1", "cuda:99999999999999999999",
                           "\xff\xfe", "cpu\n", "%s%n%s"};
    condinst_model *model;
    for (size_t field = 0; field < 3; field++)
        for (size_t i = 0; i < COUNT(numbers) - (field == 2); i++) { /* all detections are fine */
            condinst_options options = none;
            *(field == 0   ? &options.threads
              : field == 1 ? &options.workers
                           : &options.max_detections) = numbers[i];
            EXPECT(condinst_open(path, &options, &model), CONDINST_BAD_ARGUMENT, "must be at");
            SURE(model == NULL);
        }
    for (size_t i = 0; i < COUNT(scores); i++) {
        condinst_options options = none;
        options.score_threshold = scores[i];
        EXPECT(condinst_open(path, &options, &model), CONDINST_BAD_ARGUMENT, "from 0 to 1");
    }
    for (size_t field = 0; field < 4; field++)
        for (size_t i = 0; i < COUNT(texts); i++) {
            condinst_options options = none;
            *(field == 0   ? &options.device
              : field == 1 ? &options.runtime
              : field == 2 ? &options.precision
                           : &options.python) = texts[i];
            EXPECT(condinst_open(path, &options, &model),
                   field == 3 ? CONDINST_PYTHON : CONDINST_BAD_ARGUMENT, NULL);
            SURE(model == NULL && condinst_last_error()[0] != '\0');
        }
    condinst_options options = none;
    options.threads = options.workers = 1024;
    EXPECT(condinst_open(path, &options, &model), CONDINST_BAD_ARGUMENT, "together");
}

static void wrong_frames(condinst_model *model) {
    const condinst_image good = {pixels, 8, 8, 24, CONDINST_BGR};
    const struct {
        condinst_image image;
        condinst_status status;
        const char *word;
    } bad[] = {
        {{NULL, 8, 8, 24, 0}, CONDINST_BAD_ARGUMENT, "data of image"},
        {{pixels, 0, 8, 24, 0}, CONDINST_BAD_ARGUMENT, "0 x 8 pixels"},
        {{pixels, 8, 0, 24, 0}, CONDINST_BAD_ARGUMENT, "8 x 0 pixels"},
        {{pixels, -1, 8, 24, 0}, CONDINST_BAD_ARGUMENT, "-1 x 8 pixels"},
        {{pixels, 8, -1, 24, 0}, CONDINST_BAD_ARGUMENT, "8 x -1 pixels"},
        {{pixels, INT32_MIN, INT32_MIN, 24, 0}, CONDINST_BAD_ARGUMENT, "pixels"},
        {{pixels, INT32_MAX, 8, 24, 0}, CONDINST_BAD_ARGUMENT, "stride"},
        {{pixels, INT32_MAX, INT32_MAX, PTRDIFF_MAX, 0}, CONDINST_BAD_ARGUMENT, "memory"},
        {{pixels, 8, INT32_MAX, PTRDIFF_MAX, 0}, CONDINST_BAD_ARGUMENT, "memory"},
        {{pixels, 8, 8, PTRDIFF_MAX / 8, 0}, CONDINST_BAD_ARGUMENT, "memory"},
        {{pixels, 8, 8, (ptrdiff_t)1 << 45, 0}, CONDINST_BAD_ARGUMENT, "memory"},
        {{pixels, 8, 8, 0, 0}, CONDINST_BAD_ARGUMENT, "stride"},
        {{pixels, 8, 8, 23, 0}, CONDINST_BAD_ARGUMENT, "a row of 8 pixels has 24"},
        {{pixels, 8, 8, 31, CONDINST_BGRA}, CONDINST_BAD_ARGUMENT, "has 32"},
        {{pixels, 8, 8, 7, CONDINST_GRAY}, CONDINST_BAD_ARGUMENT, "has 8"},
        {{pixels, 8, 8, -24, 0}, CONDINST_BAD_ARGUMENT, "stride"},
        {{pixels, 8, 8, PTRDIFF_MIN, 0}, CONDINST_BAD_ARGUMENT, "stride"},
        {{pixels, 8, 8, 24, 5}, CONDINST_BAD_ARGUMENT, "condinst_channels"},
        {{pixels, 8, 8, 24, -1}, CONDINST_BAD_ARGUMENT, "condinst_channels"},
        {{pixels, 8, 8, 24, INT32_MAX}, CONDINST_BAD_ARGUMENT, "condinst_channels"},
        {{pixels, 8, 8, 24, INT32_MIN}, CONDINST_BAD_ARGUMENT, "condinst_channels"},
        /* the pixels are counted before one is read */
        {{pixels, 100000, 100000, 300000, 0}, CONDINST_BAD_INPUT, "more than the limit"},
    };
    for (size_t i = 0; i < COUNT(bad); i++)
        for (size_t place = 0; place < 2; place++) {
            const condinst_image both[2] = {place ? good : bad[i].image,
                                            place ? bad[i].image : good};
            condinst_result *results[2] = {(condinst_result *)pixels, (condinst_result *)pixels};
            EXPECT(condinst_find(model, both, 2, CONDINST_RLE, results), bad[i].status,
                   bad[i].word);
            SURE(results[0] == NULL && results[1] == NULL);
        }
}

/* Everything but the model and the frame of condinst_find, condinst_panoptic and the others. */
static void wrong_calls(condinst_model *model) {
    const condinst_image good = {pixels, 8, 8, 24, CONDINST_BGR};
    condinst_status (*const functions[])(condinst_model *, const condinst_image *, size_t,
                                         condinst_mask_format,
                                         condinst_result **) = {condinst_find, condinst_panoptic};
    const int formats[] = {-1, 3, INT_MAX, INT_MIN};
    const size_t counts[] = {0, (size_t)INT32_MAX + 1, SIZE_MAX, SIZE_MAX / sizeof(void *) + 2};
    condinst_result *result;
    condinst_image image;
    for (size_t f = 0; f < COUNT(functions); f++) {
        EXPECT(functions[f](NULL, &good, 1, 0, &result), CONDINST_BAD_ARGUMENT, "model is NULL");
        EXPECT(functions[f](model, NULL, 1, 0, &result), CONDINST_BAD_ARGUMENT, "images is NULL");
        EXPECT(functions[f](model, &good, 1, 0, NULL), CONDINST_BAD_ARGUMENT, "results is NULL");
        for (size_t i = 0; i < COUNT(counts); i++)
            EXPECT(functions[f](model, &good, counts[i], 0, &result), CONDINST_BAD_ARGUMENT,
                   "n is");
        for (size_t i = 0; i < COUNT(formats); i++) {
            condinst_mask_format format; /* C++ and sanitizers know the values of an enum */
            memcpy(&format, &formats[i], sizeof format);
            EXPECT(functions[f](model, &good, 1, format, &result), CONDINST_BAD_ARGUMENT,
                   "condinst_mask_format");
            SURE(result == NULL);
        }
    }
    EXPECT(condinst_panoptic(model, &good, 1, 0, &result), CONDINST_BAD_ARGUMENT, "semantic");
    EXPECT(condinst_read_image(NULL, "a.png", &image), CONDINST_BAD_ARGUMENT, "model is NULL");
    EXPECT(condinst_read_image(model, NULL, &image), CONDINST_BAD_ARGUMENT, "path is NULL");
    EXPECT(condinst_read_image(model, "a.png", NULL), CONDINST_BAD_ARGUMENT, "image is NULL");
    SURE(image.data == NULL && image.width == 0 && image.stride == 0);
}

static void wrong_painting(condinst_model *model) {
    const condinst_image image = {pixels, SIDE, SIDE, SIDE, CONDINST_GRAY};
    uint8_t map[SIDE * SIDE];
    for (int format = CONDINST_BITS; format <= CONDINST_RLE; format++) {
        condinst_result *found = NULL;
        EXPECT(condinst_find(model, &image, 1, (condinst_mask_format)format, &found), CONDINST_OK,
               NULL);
        if (found == NULL) continue;
        const size_t indices[] = {1, SIZE_MAX, (size_t)PTRDIFF_MAX};
        const ptrdiff_t strides[] = {0, -1, SIDE - 1, -SIDE, PTRDIFF_MIN};
        for (size_t i = 0; i < COUNT(indices); i++)
            EXPECT(condinst_mask_paint(found, indices[i], 1, map, SIDE), CONDINST_BAD_ARGUMENT,
                   "instances");
        for (size_t i = 0; i < COUNT(strides); i++)
            EXPECT(condinst_mask_paint(found, 0, 1, map, strides[i]), CONDINST_BAD_ARGUMENT,
                   "stride");
        EXPECT(condinst_mask_paint(found, 0, 1, NULL, SIDE), CONDINST_BAD_ARGUMENT, "map is NULL");
        EXPECT(condinst_mask_paint(NULL, 0, 1, map, SIDE), CONDINST_BAD_ARGUMENT, "result is NULL");
        condinst_result_free(found);
    }
}

static void closed_models(const char *path) {
    condinst_model *model = opened(path), *other = opened(path), *third = (condinst_model *)pixels;
    const condinst_image good = {pixels, 8, 8, 24, CONDINST_BGR};
    condinst_result *result;
    condinst_image image;
    condinst_close(model);
    condinst_close(model); /* again */
    condinst_close(third); /* no model at all */
    for (int i = 0; i < 2; i++, model = third) {
        EXPECT(condinst_find(model, &good, 1, 0, &result), CONDINST_BAD_ARGUMENT, "is closed");
        SURE(result == NULL);
        EXPECT(condinst_panoptic(model, &good, 1, 0, &result), CONDINST_BAD_ARGUMENT, "is closed");
        EXPECT(condinst_read_image(model, "a", &image), CONDINST_BAD_ARGUMENT, "is closed");
        SURE(image.data == NULL);
    }
    SURE(is_found(other, pixels, CONDINST_BITS));
    condinst_close(other);
}

static int arguments(const char *path) {
    condinst_model *model;
    SURE(condinst_last_error()[0] == '\0');
    EXPECT(condinst_open(path, NULL, NULL), CONDINST_BAD_ARGUMENT, "model is NULL");
    EXPECT(condinst_open(NULL, NULL, NULL), CONDINST_BAD_ARGUMENT, "model is NULL");
    EXPECT(condinst_open(NULL, NULL, &model), CONDINST_BAD_ARGUMENT, "path is NULL");
    SURE(model == NULL);
    condinst_close(NULL);
    condinst_result_free(NULL);
    condinst_image_free(NULL);
    condinst_image zero = {NULL, 0, 0, 0, 0};
    condinst_image_free(&zero);
    condinst_image_free(&zero);
    const int statuses[] = {-1, CONDINST_INTERNAL + 1, INT_MAX, INT_MIN};
    for (size_t i = 0; i < COUNT(statuses); i++) {
        condinst_status status;
        memcpy(&status, &statuses[i], sizeof status);
        SURE(strcmp(condinst_status_name(status), "?") == 0);
    }
    warm_up(path);
    model = opened(path);
    wrong_options(path);
    wrong_frames(model);
    wrong_calls(model);
    wrong_painting(model);
    SURE(is_found(model, pixels, CONDINST_BITS)); /* after all that */
    condinst_close(model);
    closed_models(path);
    return wrong;
}

/* -- paths ------------------------------------------------------------------------------------- */

static int paths(const char *path, const char *what, int n, char **names) {
    warm_up(path);
    condinst_model *model = opened(path), *made;
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (int i = 0; i < n; i++) {
        condinst_image image = {pixels, 1, 1, 1, 1};
        condinst_status status;
        alarm(30); /* a name that is waited for ends the program */
        if (strcmp(what, "open") == 0) {
            made = (condinst_model *)pixels;
            status = condinst_open(names[i], NULL, &made);
            SURE((status == CONDINST_OK) == (made != NULL));
            condinst_close(made);
        } else {
            status = condinst_read_image(model, names[i], &image);
            SURE((status == CONDINST_OK) == (image.data != NULL));
            condinst_image_free(&image);
        }
        printf("%s\t%s\n", condinst_status_name(status), status ? condinst_last_error() : "");
    }
    condinst_close(model);
    return wrong;
}

/* -- memory and threads ------------------------------------------------------------------------ */

static int cycles(const char *path, int n) {
    long before = 0;
    warm_up(path);
    for (int i = 0; i < n; i++) {
        if (i == n / 5) before = resident_kib();
        condinst_model *model = opened(path);
        SURE(is_found(model, pixels, i % 3));
        condinst_close(model);
    }
    printf("%ld\n", resident_kib() - before);
    return wrong;
}

typedef struct {
    const char *path;      /* to open, or NULL */
    condinst_model *model; /* else */
    int number, failures;
} worker;

/* Calls that succeed between calls that fail, whose text must be this thread's own. */
static void *work(void *argument) {
    worker *w = argument;
    uint8_t frame[SIDE * SIDE];
    memset(frame, 140 + 12 * w->number, sizeof frame);
    condinst_model *model = w->model;
    char needed[40];
    for (int i = 0; i < (w->path ? 6 : 40); i++) {
        if (w->path != NULL && condinst_open(w->path, NULL, &model) != CONDINST_OK) w->failures++;
        condinst_image image = {frame, w->number + 1, 1000 + i, 1, 77};
        condinst_result *result;
        image.width = w->number + 1;
        image.stride = w->number; /* less than a row */
        image.channels = CONDINST_GRAY;
        snprintf(needed, sizeof needed, "a row of %d pixels", w->number + 1);
        w->failures += condinst_find(model, &image, 1, 0, &result) != CONDINST_BAD_ARGUMENT;
        w->failures += !is_found(model, frame, i % 3);
        w->failures += strstr(condinst_last_error(), needed) == NULL;
        snprintf(needed, sizeof needed, "/no/%d-%d.onnx does", w->number, i);
        char name[40];
        snprintf(name, sizeof name, "/no/%d-%d.onnx", w->number, i);
        condinst_model *none;
        w->failures += condinst_open(name, NULL, &none) != CONDINST_BAD_MODEL;
        w->failures += strstr(condinst_last_error(), needed) == NULL;
        if (w->path != NULL) condinst_close(model);
    }
    return NULL;
}

static void all_work(const char *path, condinst_model *model) {
    pthread_t threads[THREADS];
    worker workers[THREADS];
    for (int i = 0; i < THREADS; i++) {
        workers[i] = (worker){path, model, i, 0};
        SURE(pthread_create(&threads[i], NULL, work, &workers[i]) == 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        SURE(workers[i].failures == 0);
    }
}

static int threads(const char *path) {
    all_work(path, NULL); /* eight at once start Python, none of them the main thread */
    condinst_model *model = opened(path);
    all_work(NULL, model);
    condinst_close(model);
    return wrong;
}

/* -- hosts ------------------------------------------------------------------------------------- */

static void join_child(pid_t child) {
    int state = 1;
    SURE(child > 0 && waitpid(child, &state, 0) == child && state == 0);
}

static void child_of_a_user(const char *path, condinst_model *model) {
    const condinst_image image = {pixels, SIDE, SIDE, SIDE, CONDINST_GRAY};
    condinst_result *result;
    condinst_image file;
    condinst_model *another;
    alarm(30);
    EXPECT(condinst_find(model, &image, 1, 0, &result), CONDINST_PYTHON, "before this process was");
    EXPECT(condinst_read_image(model, "a.png", &file), CONDINST_PYTHON, "fork");
    EXPECT(condinst_open(path, NULL, &another), CONDINST_PYTHON, "after fork only");
    SURE(result == NULL && file.data == NULL && another == NULL);
    condinst_close(model);
    condinst_close(model);
    _exit(wrong);
}

static volatile int ended = 0;

static void *keep_calling(void *model) {
    while (!ended)
        if (!is_found(model, pixels, CONDINST_BITS)) wrong = 1;
    return NULL;
}

static int forks_of(const char *path) {
    pid_t child = fork();
    if (child == 0) { /* nobody has opened anything yet */
        condinst_model *model = opened(path);
        SURE(is_found(model, pixels, CONDINST_BITS));
        condinst_close(model);
        _exit(wrong);
    }
    join_child(child);
    condinst_model *model = opened(path);
    condinst_result *kept = NULL;
    const condinst_image image = {pixels, SIDE, SIDE, SIDE, CONDINST_GRAY};
    EXPECT(condinst_find(model, &image, 1, CONDINST_BITS, &kept), CONDINST_OK, NULL);
    pthread_t thread;
    pthread_create(&thread, NULL, keep_calling, model);
    for (int i = 0; i < 20 && !wrong;
         i++) { /* whatever the other thread holds, Python's lock too */
        child = fork();
        if (child == 0) {
            uint8_t map[SIDE * SIDE];
            EXPECT(condinst_mask_paint(kept, 0, 1, map, SIDE), CONDINST_OK, NULL);
            condinst_result_free(kept);
            child_of_a_user(path, model);
        }
        join_child(child);
    }
    ended = 1;
    pthread_join(thread, NULL);
    SURE(is_found(model, pixels, CONDINST_BITS)); /* the parent goes on */
    condinst_result_free(kept);
    condinst_close(model);
    return wrong;
}

static volatile sig_atomic_t interrupts = 0;

static void count_interrupt(int number) {
    (void)number;
    interrupts++;
}

static int host(const char *path) {
    struct sigaction before[65], after, interrupt;
    memset(&interrupt, 0, sizeof interrupt);
    interrupt.sa_handler = count_interrupt;
    sigaction(SIGINT, &interrupt, NULL);
    setlocale(LC_ALL, "");
    char locale[200];
    snprintf(locale, sizeof locale, "%s", setlocale(LC_ALL, NULL));
    for (int i = 1; i <= 64; i++) sigaction(i, NULL, &before[i]);
    for (int i = 0; i < 2; i++) close(i); /* stdin and stdout; stderr is the test's */
    condinst_model *model = opened(path);
    SURE(is_found(model, pixels, CONDINST_BITS));
    for (int i = 1; i <= 64; i++)
        if (sigaction(i, NULL, &after) == 0) SURE(after.sa_handler == before[i].sa_handler);
    raise(SIGINT);
    SURE(interrupts == 1 && is_found(model, pixels, CONDINST_BITS));
    SURE(strcmp(locale, setlocale(LC_ALL, NULL)) == 0);
    condinst_close(model);
    return wrong;
}

int main(int argc, char **argv) {
    memset(pixels, 255, sizeof pixels);
    alarm(SECONDS);
    const char *what = argc > 2 ? argv[1] : "", *path = argv[2];
    if (strcmp(what, "arguments") == 0) return arguments(path);
    if (strcmp(what, "paths") == 0 && argc > 3) return paths(path, argv[3], argc - 4, argv + 4);
    if (strcmp(what, "cycles") == 0 && argc == 4) return cycles(path, atoi(argv[3]));
    if (strcmp(what, "threads") == 0) return threads(path);
    if (strcmp(what, "fork") == 0) return forks_of(path);
    if (strcmp(what, "host") == 0) return host(path);
    return 2;
}

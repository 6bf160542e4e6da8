/* condinst.c - the C half of the C API; condinst_infer/serving/c_api.py is the other.

   Arguments are checked here, before Python is touched. Frames go to Python as memoryviews of the
   caller's memory; what comes back is copied into one block per result, so that freeing, painting
   and reading a result need no Python. Compiled by `condinst capi build`, which defines
   CONDINST_VERSION, CONDINST_EXECUTABLE (the Python to start) and CONDINST_LIBPYTHON. */

#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <ctype.h>
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <unistd.h>

#include "condinst.h"

#define TEXT(x) #x
#define NUMBER(x) TEXT(x)
#define PYTHON NUMBER(PY_MAJOR_VERSION) "." NUMBER(PY_MINOR_VERSION)

enum { MAX_THREADS = 1024, MAX_ALL_THREADS = 4096 };

static const int64_t max_frame_bytes = (int64_t)1 << 47; /* of memory that a process may have */

struct condinst_model {
    PyObject *object;     /* condinst_infer.serving.c_api.CApiModel */
    unsigned forks;       /* of the process that opened it */
    condinst_model *next; /* in `models` */
};

static _Thread_local char last_error[1024] = "";
static pthread_mutex_t start_lock = PTHREAD_MUTEX_INITIALIZER; /* never held while the GIL is */
static char *started = NULL; /* the Python we started; NULL where the host did or nobody yet */
static pthread_mutex_t models_lock = PTHREAD_MUTEX_INITIALIZER; /* held for moments only */
static condinst_model *models = NULL;                           /* all that are open */
static unsigned forks = 0;                                      /* between main() and here */
static atomic_uint starter = 0; /* `forks` + 1 of who starts Python; 0: nobody, or the host */

/* -- failures ---------------------------------------------------------------------------------- */

/* Bytes of the character at `c`; 0 if it is none of UTF-8. */
static size_t character_bytes(const unsigned char *c) {
    const size_t n = c[0] < 0x80 ? 1 : c[0] < 0xC2 ? 0 : c[0] < 0xE0 ? 2 : c[0] < 0xF0 ? 3 : 4;
    if (c[0] > 0xF4) return 0;
    for (size_t i = 1; i < n; i++)
        if ((c[i] & 0xC0) != 0x80) return 0;
    if ((c[0] == 0xE0 && c[1] < 0xA0) || (c[0] == 0xF0 && c[1] < 0x90)) return 0; /* too long */
    if ((c[0] == 0xED && c[1] > 0x9F) || (c[0] == 0xF4 && c[1] > 0x8F)) return 0; /* no code */
    return n;
}

/* Makes one line of UTF-8 of a text with names that the caller gave. */
static void make_line(char *text) {
    for (unsigned char *c = (unsigned char *)text; *c;) {
        const size_t n = character_bytes(c);
        if (n == 0 || *c < ' ' || *c == 0x7F) *c = n == 1 && isspace(*c) ? ' ' : '?';
        c += n == 0 ? 1 : n;
    }
}

static condinst_status fail(condinst_status status, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static condinst_status fail(condinst_status status, const char *format, ...) {
    va_list words;
    va_start(words, format);
    int length = vsnprintf(last_error, sizeof last_error, format, words);
    va_end(words);
    if (length >= (int)sizeof last_error) { /* cut between two characters, not inside one */
        size_t end = sizeof last_error - 1;
        while (end > 0 && ((unsigned char)last_error[end - 1] & 0xC0) == 0x80) end--;
        if (end > 0 && ((unsigned char)last_error[end - 1] & 0x80)) end--;
        last_error[end] = '\0';
    }
    make_line(last_error);
    return status;
}

/* What was raised outside of `guarded`, most often by importing it; clears it. */
static condinst_status fail_raised(void) {
    condinst_status status = CONDINST_INTERNAL;
    const int missing = PyErr_ExceptionMatches(PyExc_ModuleNotFoundError);
    if (PyErr_ExceptionMatches(PyExc_ImportError)) status = CONDINST_MISSING_PACKAGE;
    if (PyErr_ExceptionMatches(PyExc_MemoryError)) status = CONDINST_OUT_OF_MEMORY;
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyObject *text = value == NULL ? NULL : PyObject_Str(value);
    const char *words = text == NULL ? NULL : PyUnicode_AsUTF8(text);
    if (words == NULL) words = "a Python exception without a text";
    if (status == CONDINST_MISSING_PACKAGE) {
        fail(status, "%s: %s.%s", started == NULL ? "the Python of this process" : started, words,
             missing ? " Install it there: pip install 'condinst-infer[cpu]'" : "");
    } else {
        fail(status, "%s: %s", ((PyTypeObject *)type)->tp_name, words);
    }
    Py_XDECREF(text);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(trace);
    PyErr_Clear(); /* of making the text */
    return status;
}

/* -- Python ------------------------------------------------------------------------------------ */

static condinst_status fail_to_start(const char *python, PyStatus state) {
    const char *home = getenv("PYTHONHOME"), *path = getenv("PYTHONPATH");
    return fail(CONDINST_PYTHON,
                "%.250s can't be started as Python " PYTHON
                ": %.150s. PYTHONHOME is %.150s, PYTHONPATH is %.150s.",
                python, state.err_msg == NULL ? "it asked to exit" : state.err_msg,
                home == NULL ? "not set" : home, path == NULL ? "not set" : path);
}

static condinst_status initialise(const char *python) {
    struct stat file;
    if (strchr(python, '/') == NULL || access(python, X_OK) != 0 || stat(python, &file) != 0 ||
        !S_ISREG(file.st_mode))
        return fail(CONDINST_PYTHON,
                    "%.500s is no Python that can be run; give bin/python of a "
                    "virtual environment with condinst_infer.",
                    python);
    /* modules written in C look for Python's functions among the global ones, where a host that
       loaded us as a plugin has not put them */
    dlopen(CONDINST_LIBPYTHON, RTLD_NOW | RTLD_GLOBAL | RTLD_NOLOAD);
    PyPreConfig before;
    PyPreConfig_InitPythonConfig(&before);
    before.configure_locale = before.coerce_c_locale = 0; /* the host's */
    before.utf8_mode = 1;
    PyStatus state = Py_PreInitialize(&before);
    if (!PyStatus_Exception(state)) {
        PyConfig config;
        PyConfig_InitPythonConfig(&config);
        config.install_signal_handlers = config.configure_c_stdio = 0; /* the host's */
        config.parse_argv = config.pathconfig_warnings = 0;
        /* pyvenv.cfg is looked for beside it */
        state = PyConfig_SetBytesString(&config, &config.program_name, python);
        if (!PyStatus_Exception(state)) state = Py_InitializeFromConfig(&config);
        PyConfig_Clear(&config);
    }
    if (PyStatus_Exception(state)) return fail_to_start(python, state);
    /* importing this, as many modules do, would take Ctrl-C from the host all the same */
    struct sigaction interrupt;
    sigaction(SIGINT, NULL, &interrupt);
    Py_XDECREF(PyImport_ImportModule("_signal"));
    PyErr_Clear();
    sigaction(SIGINT, &interrupt, NULL);
    PyEval_SaveThread();
    started = strdup(python);
    return CONDINST_OK;
}

static condinst_status check_version(void) {
    if (strncmp(Py_GetVersion(), PYTHON ".", strlen(PYTHON ".")) == 0) return CONDINST_OK;
    return fail(CONDINST_PYTHON,
                "this process runs Python %s, and the library was built for " PYTHON
                ". Build it with that one: condinst capi build",
                Py_GetVersion());
}

/* A running Python; `python` is the one to start, or NULL. */
static condinst_status ensure_python(const char *python) {
    condinst_status status = CONDINST_OK;
    unsigned nobody = 0;
    if (!Py_IsInitialized()) atomic_compare_exchange_strong(&starter, &nobody, forks + 1);
    const unsigned who = atomic_load(&starter);
    if (who == 0) return check_version();
    if (who != forks + 1) /* its lock may be held by a thread that is not here */
        return fail(CONDINST_PYTHON,
                    "this process was forked after condinst_open, and Python did not come along. "
                    "Call condinst_open after fork only, or exec.");
    pthread_mutex_lock(&start_lock);
    if (!Py_IsInitialized())
        status = initialise(python == NULL ? CONDINST_EXECUTABLE : python);
    else if (started == NULL)
        status = check_version();
    else if (python != NULL && strcmp(started, python) != 0)
        status = fail(CONDINST_PYTHON,
                      "%.400s can't be started: this process runs %.400s already, and has only one "
                      "Python.",
                      python, started);
    pthread_mutex_unlock(&start_lock);
    return status;
}

/* The value in a reply of condinst_infer.serving.c_api, or NULL after `fail`. Takes a reference. */
static PyObject *value_of(PyObject *reply, condinst_status *status) {
    int code;
    const char *text;
    PyObject *value = NULL;
    *status = CONDINST_OK;
    if (reply == NULL || !PyArg_ParseTuple(reply, "isO", &code, &text, &value)) {
        *status = fail_raised();
        value = NULL;
    } else if (code != CONDINST_OK) {
        *status = fail((condinst_status)code, "%s", text);
        value = NULL;
    }
    Py_XINCREF(value);
    Py_XDECREF(reply);
    return value;
}

/* -- models ------------------------------------------------------------------------------------ */

static condinst_status check_options(const condinst_options *options) {
    const struct {
        const char *name;
        int32_t value;
    } whole[] = {{"threads", options->threads},
                 {"workers", options->workers},
                 {"max_detections", options->max_detections}};
    for (size_t i = 0; i < sizeof whole / sizeof *whole; i++)
        if (whole[i].value < 0)
            return fail(CONDINST_BAD_ARGUMENT,
                        "%s is %d; it must be at least 1, or 0 for the default.", whole[i].name,
                        (int)whole[i].value);
    for (size_t i = 0; i < 2; i++) /* more than memory has stacks for would end the process */
        if (whole[i].value > MAX_THREADS)
            return fail(CONDINST_BAD_ARGUMENT, "%s is %d; it must be at most %d.", whole[i].name,
                        (int)whole[i].value, MAX_THREADS);
    if ((int64_t)options->threads * options->workers > MAX_ALL_THREADS)
        return fail(CONDINST_BAD_ARGUMENT,
                    "threads is %d and workers is %d; together they must be at most %d.",
                    (int)options->threads, (int)options->workers, MAX_ALL_THREADS);
    if (!(options->score_threshold >= 0 && options->score_threshold <= 1)) /* NaN too */
        return fail(CONDINST_BAD_ARGUMENT, "score_threshold is %g; it must be from 0 to 1.",
                    (double)options->score_threshold);
    return CONDINST_OK;
}

static void lock_models(void) { pthread_mutex_lock(&models_lock); }

static void unlock_models(void) { pthread_mutex_unlock(&models_lock); }

static void count_fork(void) {
    forks++;
    unlock_models();
}

__attribute__((constructor)) static void watch_forks(void) {
    pthread_atfork(lock_models, unlock_models, count_fork);
}

static void add_model(condinst_model *model) {
    lock_models();
    model->forks = forks;
    model->next = models;
    models = model;
    unlock_models();
}

/* The pointer to `model` among those that are open, where NULL is if it isn't; locked. */
static condinst_model **find_model(const condinst_model *model) {
    condinst_model **at = &models;
    while (*at != NULL && *at != model) at = &(*at)->next;
    return at;
}

/* Nothing of `model` is read before it was found: it may be closed. */
static condinst_status check_model(const condinst_model *model) {
    if (model == NULL) return fail(CONDINST_BAD_ARGUMENT, "model is NULL.");
    lock_models();
    const int is_open = *find_model(model) != NULL, is_here = is_open && model->forks == forks;
    unlock_models();
    if (!is_open) return fail(CONDINST_BAD_ARGUMENT, "model is closed, or was never opened.");
    if (!is_here)
        return fail(CONDINST_PYTHON,
                    "model was opened before this process was forked; its threads did not come "
                    "along. Open models after fork.");
    if (!Py_IsInitialized())
        return fail(CONDINST_PYTHON, "the Python of this process has been ended by its host.");
    return CONDINST_OK;
}

condinst_status condinst_open(const char *path, const condinst_options *options,
                              condinst_model **model) {
    if (model == NULL) return fail(CONDINST_BAD_ARGUMENT, "model is NULL.");
    *model = NULL;
    if (path == NULL) return fail(CONDINST_BAD_ARGUMENT, "path is NULL.");
    const condinst_options o = options == NULL ? condinst_default_options() : *options;
    condinst_status status = check_options(&o);
    if (status == CONDINST_OK) status = ensure_python(o.python);
    if (status != CONDINST_OK) return status;
    condinst_model *made = malloc(sizeof *made);
    if (made == NULL) return fail(CONDINST_OUT_OF_MEMORY, "there is no memory for a model.");
    PyGILState_STATE gil = PyGILState_Ensure();
    PyObject *bridge = PyImport_ImportModule("condinst_infer.serving.c_api");
    if (bridge == NULL) {
        status = fail_raised();
    } else {
        PyObject *reply = PyObject_CallMethod(
            bridge, "open_model", "yyyyiiid", path, o.device, o.runtime, o.precision,
            (int)o.threads, (int)o.workers, (int)o.max_detections, (double)o.score_threshold);
        made->object = value_of(reply, &status);
        Py_DECREF(bridge);
    }
    PyGILState_Release(gil);
    if (status != CONDINST_OK) {
        free(made);
        return status;
    }
    add_model(made);
    *model = made;
    return CONDINST_OK;
}

void condinst_close(condinst_model *model) {
    lock_models();
    condinst_model **at = find_model(model);
    const int is_open = *at != NULL, is_here = is_open && model->forks == forks;
    if (is_open) *at = model->next;
    unlock_models();
    if (!is_open) return;                /* NULL, or closed before */
    if (is_here && Py_IsInitialized()) { /* not where the host has ended its Python before */
        PyGILState_STATE gil = PyGILState_Ensure();
        PyObject *reply = PyObject_CallMethod(model->object, "close", NULL);
        if (reply == NULL) PyErr_Clear();
        Py_XDECREF(reply);
        Py_DECREF(model->object);
        PyGILState_Release(gil);
    }
    free(model);
}

/* -- results ----------------------------------------------------------------------------------- */

enum {
    BOXES,
    SCORES,
    LABELS,
    CROPS,
    NAMES,
    MASKS,
    IDS,
    SEGMENTS,
    SEGMENT_SCORES,
    SEGMENT_NAMES,
    PARTS
};

/* The next zero-terminated text of [*from, end), or NULL when there is none. */
static const char *next_text(const char **from, const char *end) {
    const char *text = *from;
    const char *zero = text == end ? NULL : memchr(text, 0, (size_t)(end - text));
    if (zero == NULL) return NULL;
    *from = zero + 1;
    return text;
}

/* The room that is next in a block of memory that is handed out piece by piece. */
static void *take(char **block, size_t bytes) {
    char *piece = *block;
    *block += (bytes + 15) & ~(size_t)15;
    return piece;
}

static void *take_copy(char **block, const Py_buffer *part) {
    void *copy = take(block, (size_t)part->len);
    if (part->len) memcpy(copy, part->buf, (size_t)part->len);
    return copy;
}

/* Masks and names of the instances; 0 if the parts don't agree. */
static int fill_instances(condinst_result *result, char **block, const Py_buffer *part) {
    const size_t k = result->count;
    const char **names = take(block, k * sizeof *names);
    condinst_mask *masks = take(block, k * sizeof *masks);
    const int32_t *crop = part[CROPS].buf;
    result->boxes = take_copy(block, &part[BOXES]);
    result->scores = take_copy(block, &part[SCORES]);
    result->labels = take_copy(block, &part[LABELS]);
    const char *name = take_copy(block, &part[NAMES]), *names_end = name + part[NAMES].len;
    const char *rows = take_copy(block, &part[MASKS]), *rows_end = rows + part[MASKS].len;
    result->names = names;
    result->masks = masks;
    for (size_t i = 0; i < k; i++, crop += 4) {
        names[i] = next_text(&name, names_end);
        masks[i] = (condinst_mask){crop[0], crop[1], crop[2], crop[3], 0, NULL, NULL};
        if (result->mask_format == CONDINST_RLE) {
            masks[i].rle = next_text(&rows, rows_end);
        } else {
            size_t width = (size_t)crop[2];
            masks[i].stride = result->mask_format == CONDINST_BITS ? (width + 7) / 8 : width;
            masks[i].rows = (const uint8_t *)rows;
            if (masks[i].stride * (size_t)crop[3] > (size_t)(rows_end - rows)) return 0;
            rows += masks[i].stride * (size_t)crop[3];
        }
        if (names[i] == NULL || (masks[i].rle == NULL) == (masks[i].rows == NULL)) return 0;
    }
    return 1;
}

static int fill_segments(condinst_result *result, char **block, const Py_buffer *part) {
    condinst_segment *segments = take(block, result->segment_count * sizeof *segments);
    const int64_t *n = part[SEGMENTS].buf;
    const float *scores = part[SEGMENT_SCORES].buf;
    result->ids = take_copy(block, &part[IDS]);
    const char *name = take_copy(block, &part[SEGMENT_NAMES]);
    const char *end = name + part[SEGMENT_NAMES].len;
    result->segments = segments;
    for (size_t i = 0; i < result->segment_count; i++, n += 9) {
        segments[i] = (condinst_segment){
            .id = (int32_t)n[0],
            .is_thing = (int32_t)n[1],
            .instance = (int32_t)n[2],
            .box = {(int32_t)n[3], (int32_t)n[4], (int32_t)n[5], (int32_t)n[6]},
            .score = scores[i],
            .category_id = n[7],
            .area = n[8],
            .name = next_text(&name, end),
        };
        if (segments[i].name == NULL) return 0;
    }
    return 1;
}

/* A result of the parts that condinst_infer.serving.c_api gives for an image; NULL after `fail`. */
static condinst_result *result_from_parts(PyObject *parts, condinst_status *status) {
    int height, width, format;
    Py_buffer part[PARTS];
    if (!PyArg_ParseTuple(parts, "iiiy*y*y*y*y*y*y*y*y*y*", &height, &width, &format, &part[0],
                          &part[1], &part[2], &part[3], &part[4], &part[5], &part[6], &part[7],
                          &part[8], &part[9])) {
        *status = fail_raised();
        return NULL;
    }
    const size_t k = (size_t)part[SCORES].len / sizeof(float);
    const size_t segments = (size_t)part[SEGMENT_SCORES].len / sizeof(float);
    size_t bytes = sizeof(condinst_result) + k * (sizeof(char *) + sizeof(condinst_mask)) +
                   segments * sizeof(condinst_segment) + 16 * (PARTS + 4); /* what `take` rounds */
    for (int i = 0; i < PARTS; i++) bytes += (size_t)part[i].len;
    condinst_result *result = malloc(bytes);
    if (result == NULL) {
        *status =
            fail(CONDINST_OUT_OF_MEMORY, "there is no memory for a result of %zu bytes.", bytes);
    } else {
        char *block = (char *)result;
        memset(take(&block, sizeof *result), 0, sizeof *result);
        result->height = height;
        result->width = width;
        result->mask_format = format;
        result->count = k;
        result->segment_count = segments;
        const size_t sizes[] = {k * 16, k * 4, k * 4, k * 16};
        int fits = (size_t)part[SEGMENTS].len == segments * 9 * sizeof(int64_t);
        for (int i = BOXES; i <= CROPS; i++) fits &= (size_t)part[i].len == sizes[i];
        fits = fits && fill_instances(result, &block, part);
        if (part[IDS].len)
            fits = fits && (size_t)part[IDS].len == (size_t)height * (size_t)width * 4 &&
                   fill_segments(result, &block, part);
        if (!fits) {
            free(result);
            result = NULL;
            *status = fail(CONDINST_INTERNAL,
                           "condinst_infer and libcondinst don't fit together. "
                           "Build the library again: condinst capi build");
        }
    }
    for (int i = 0; i < PARTS; i++) PyBuffer_Release(&part[i]);
    return result;
}

void condinst_result_free(condinst_result *result) { free(result); }

/* -- calls ------------------------------------------------------------------------------------- */

static const int32_t channel_counts[] = {3, 3, 4, 4, 1}; /* of condinst_channels */

static condinst_status check_image(const condinst_image *image, size_t i) {
    if (image->data == NULL) return fail(CONDINST_BAD_ARGUMENT, "data of image %zu is NULL.", i);
    if (image->width < 1 || image->height < 1)
        return fail(CONDINST_BAD_ARGUMENT, "image %zu has %d x %d pixels; it must have some.", i,
                    (int)image->width, (int)image->height);
    if (image->channels < 0 || image->channels > CONDINST_GRAY)
        return fail(CONDINST_BAD_ARGUMENT,
                    "channels of image %zu is %d; it must be one of condinst_channels, 0 to %d.", i,
                    (int)image->channels, CONDINST_GRAY);
    const int64_t row = (int64_t)image->width * channel_counts[image->channels];
    if (image->stride < row)
        return fail(CONDINST_BAD_ARGUMENT,
                    "stride of image %zu is %td bytes; a row of %d pixels has %lld.", i,
                    image->stride, (int)image->width, (long long)row);
    if (image->stride > max_frame_bytes / image->height)
        return fail(CONDINST_BAD_ARGUMENT,
                    "stride of image %zu is %td bytes; %d such rows don't fit into memory.", i,
                    image->stride, (int)image->height);
    return CONDINST_OK;
}

/* The images for condinst_infer.serving.c_api, or NULL with an exception set. */
static PyObject *frames_from_images(const condinst_image *images, size_t n) {
    PyObject *frames = PyList_New((Py_ssize_t)n);
    for (size_t i = 0; frames != NULL && i < n; i++) {
        const condinst_image *m = &images[i];
        /* the last row ends with its last pixel */
        Py_ssize_t bytes = (Py_ssize_t)(m->height - 1) * m->stride +
                           (Py_ssize_t)m->width * channel_counts[m->channels];
        PyObject *view = PyMemoryView_FromMemory((char *)(uintptr_t)m->data, bytes, PyBUF_READ);
        PyObject *frame = view == NULL ? NULL
                                       : Py_BuildValue("Niini", view, (int)m->width, (int)m->height,
                                                       (Py_ssize_t)m->stride, (int)m->channels);
        if (frame == NULL)
            Py_CLEAR(frames);
        else
            PyList_SET_ITEM(frames, (Py_ssize_t)i, frame);
    }
    return frames;
}

/* Calls `method`; with the GIL held. */
static condinst_status called(condinst_model *model, const char *method,
                              const condinst_image *images, size_t n, condinst_mask_format format,
                              condinst_result **results) {
    condinst_status status = CONDINST_OK;
    PyObject *frames = frames_from_images(images, n);
    if (frames == NULL) return fail_raised();
    PyObject *all =
        value_of(PyObject_CallMethod(model->object, method, "Oi", frames, (int)format), &status);
    Py_DECREF(frames);
    for (size_t i = 0; all != NULL && status == CONDINST_OK && i < n; i++) {
        PyObject *parts = PyList_GetItem(all, (Py_ssize_t)i); /* borrowed */
        if (parts == NULL)
            status = fail_raised();
        else
            results[i] = result_from_parts(parts, &status);
    }
    Py_XDECREF(all);
    return status;
}

static condinst_status run(condinst_model *model, const char *method, const condinst_image *images,
                           size_t n, condinst_mask_format format, condinst_result **results) {
    if (n < 1 || n > INT32_MAX)
        return fail(CONDINST_BAD_ARGUMENT, "n is %zu; it must be from 1 to %d.", n, INT32_MAX);
    if (results == NULL) return fail(CONDINST_BAD_ARGUMENT, "results is NULL.");
    memset(results, 0, n * sizeof *results);
    condinst_status state = check_model(model);
    if (state != CONDINST_OK) return state;
    if (images == NULL) return fail(CONDINST_BAD_ARGUMENT, "images is NULL.");
    if ((int)format < 0 || (int)format > CONDINST_RLE)
        return fail(CONDINST_BAD_ARGUMENT,
                    "format is %d; it must be one of condinst_mask_format, 0 to %d.", (int)format,
                    CONDINST_RLE);
    for (size_t i = 0; i < n; i++) {
        condinst_status status = check_image(&images[i], i);
        if (status != CONDINST_OK) return status;
    }
    PyGILState_STATE gil = PyGILState_Ensure();
    condinst_status status = called(model, method, images, n, format, results);
    PyGILState_Release(gil);
    if (status != CONDINST_OK)
        for (size_t i = 0; i < n; i++) {
            condinst_result_free(results[i]);
            results[i] = NULL;
        }
    return status;
}

condinst_status condinst_find(condinst_model *model, const condinst_image *images, size_t n,
                              condinst_mask_format format, condinst_result **results) {
    return run(model, "find", images, n, format, results);
}

condinst_status condinst_panoptic(condinst_model *model, const condinst_image *images, size_t n,
                                  condinst_mask_format format, condinst_result **results) {
    return run(model, "panoptic", images, n, format, results);
}

condinst_status condinst_read_image(condinst_model *model, const char *path,
                                    condinst_image *image) {
    if (image == NULL) return fail(CONDINST_BAD_ARGUMENT, "image is NULL.");
    memset(image, 0, sizeof *image);
    condinst_status status = check_model(model);
    if (status != CONDINST_OK) return status;
    if (path == NULL) return fail(CONDINST_BAD_ARGUMENT, "path is NULL.");
    int width, height;
    Py_buffer pixels;
    PyGILState_STATE gil = PyGILState_Ensure();
    PyObject *read = value_of(PyObject_CallMethod(model->object, "read", "y", path), &status);
    if (read != NULL && !PyArg_ParseTuple(read, "iiy*", &width, &height, &pixels)) {
        status = fail_raised();
    } else if (read != NULL) {
        uint8_t *data = malloc((size_t)pixels.len);
        if (data == NULL) {
            status = fail(CONDINST_OUT_OF_MEMORY, "there is no memory for %d x %d pixels.", width,
                          height);
        } else {
            memcpy(data, pixels.buf, (size_t)pixels.len);
            *image = (condinst_image){data, width, height, (ptrdiff_t)width * 3, CONDINST_BGR};
        }
        PyBuffer_Release(&pixels);
    }
    Py_XDECREF(read);
    PyGILState_Release(gil);
    return status;
}

void condinst_image_free(condinst_image *image) {
    if (image == NULL) return;
    free((void *)(uintptr_t)image->data);
    memset(image, 0, sizeof *image);
}

/* -- without Python ---------------------------------------------------------------------------- */

int32_t condinst_abi(void) { return CONDINST_ABI; }

const char *condinst_version(void) { return CONDINST_VERSION; }

const char *condinst_last_error(void) { return last_error; }

const char *condinst_status_name(condinst_status status) {
    static const char *const names[] = {
        "CONDINST_OK",
        "CONDINST_BAD_ARGUMENT",
        "CONDINST_BAD_MODEL",
        "CONDINST_BAD_INPUT",
        "CONDINST_SESSION",
        "CONDINST_MISSING_PACKAGE",
        "CONDINST_OUT_OF_MEMORY",
        "CONDINST_PYTHON",
        "CONDINST_INTERNAL",
    };
    return (int)status < 0 || (int)status > CONDINST_INTERNAL ? "?" : names[status];
}

condinst_options condinst_default_options(void) {
    return (condinst_options){NULL, NULL, NULL, 0, 0, 0, 0, NULL};
}

/* COCO's text: five bits a character, lowest first, the sixth says that more follow; from the
   third number on, differences to the number two before. The numbers are the lengths of runs down
   the columns, background first. */
static void paint_rle(const condinst_result *result, const char *text, uint8_t value, uint8_t *map,
                      ptrdiff_t stride) {
    const int64_t height = result->height, pixels = height * result->width;
    int64_t last = 0, before_last = 0, at = 0;
    for (int n = 0; *text && at < pixels; n++) {
        uint64_t bits = 0;
        int shift = 0, c;
        do {
            c = *text++ - 48;
            bits |= (uint64_t)(c & 31) << shift;
            shift += 5;
        } while ((c & 32) && *text && shift < 60);
        if (c & 16) bits |= ~(uint64_t)0 << shift;
        const int64_t run = (int64_t)bits + (n > 2 ? before_last : 0);
        before_last = last;
        last = run;
        const int64_t end = at + run < pixels ? at + run : pixels;
        for (; at < end; at++)
            if (n % 2) map[at % height * stride + at / height] = value;
    }
}

condinst_status condinst_mask_paint(const condinst_result *result, size_t index, uint8_t value,
                                    uint8_t *map, ptrdiff_t stride) {
    if (result == NULL) return fail(CONDINST_BAD_ARGUMENT, "result is NULL.");
    if (map == NULL) return fail(CONDINST_BAD_ARGUMENT, "map is NULL.");
    if (index >= result->count)
        return fail(CONDINST_BAD_ARGUMENT, "index is %zu; the result has %zu instances.", index,
                    result->count);
    if (stride < result->width)
        return fail(CONDINST_BAD_ARGUMENT, "stride of the map is %td; a row has %d bytes.", stride,
                    (int)result->width);
    const condinst_mask *mask = &result->masks[index];
    if (mask->rle != NULL) {
        paint_rle(result, mask->rle, value, map, stride);
        return CONDINST_OK;
    }
    for (int32_t y = 0; y < mask->height; y++) {
        const uint8_t *row = mask->rows + (size_t)y * mask->stride;
        uint8_t *to = map + (ptrdiff_t)(mask->y + y) * stride + mask->x;
        for (int32_t x = 0; x < mask->width; x++)
            if (result->mask_format == CONDINST_BITS ? row[x / 8] >> (x % 8) & 1 : row[x])
                to[x] = value;
    }
    return CONDINST_OK;
}

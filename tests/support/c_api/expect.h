/* expect.h - what the programs in this folder expect; the exit status of a program is `wrong`. */

#ifndef EXPECT_H
#define EXPECT_H

#include <condinst.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static int wrong = 0;

static void expect(int line, condinst_status found, condinst_status needed, const char *word) {
    const char *text = condinst_last_error();
    if (found == needed && (word == NULL || strstr(text, word) != NULL)) return;
    fprintf(stderr, "line %d: %s instead of %s; %s\n", line, condinst_status_name(found),
            condinst_status_name(needed), text);
    wrong = 1;
}
#define EXPECT(found, needed, word) expect(__LINE__, found, needed, word)
#define SURE(what) \
    ((what) ? (void)0 : (void)(fprintf(stderr, "line %d: not %s\n", __LINE__, #what), wrong = 1))

static long resident_kib(void) {
    long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file == NULL || fscanf(file, "%*d %ld", &pages) != 1) pages = 0;
    if (file != NULL) fclose(file);
    return pages * (sysconf(_SC_PAGESIZE) / 1024);
}

#endif

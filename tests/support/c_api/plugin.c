/* plugin.c - a host that loads the library as plugins are loaded, its names not made global. */

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv) {
    void *library = argc == 3 ? dlopen(argv[1], RTLD_NOW | RTLD_LOCAL) : NULL;
    if (library == NULL) return 2;
    int (*open_model)(const char *, const void *, void **);
    const char *(*last_error)(void);
    void *symbol = dlsym(library, "condinst_open"), *model;
    memcpy(&open_model, &symbol, sizeof symbol);
    symbol = dlsym(library, "condinst_last_error");
    memcpy(&last_error, &symbol, sizeof symbol);
    int status = open_model(argv[2], NULL, &model);
    if (status != 0) fprintf(stderr, "%s\n", last_error());
    return status;
}

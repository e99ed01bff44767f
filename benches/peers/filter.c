/* Two libmilter filters to be measured beside: `filter SOCKET data` accepts at DATA, `filter SOCKET all` reads everything,
   stores nothing and discards. */
#include <libmilter/mfapi.h>
#include <stdio.h>
#include <string.h>

static sfsistat on_data(SMFICTX *ctx) { (void)ctx; return SMFIS_ACCEPT; }
static sfsistat go_on(SMFICTX *ctx) { (void)ctx; return SMFIS_CONTINUE; }
static sfsistat on_envelope(SMFICTX *ctx, char **args) { (void)ctx; (void)args; return SMFIS_CONTINUE; }
static sfsistat on_header(SMFICTX *ctx, char *name, char *value) { (void)ctx; (void)name; (void)value; return SMFIS_CONTINUE; }
static sfsistat on_body(SMFICTX *ctx, unsigned char *piece, size_t length) { (void)ctx; (void)piece; (void)length; return SMFIS_CONTINUE; }
static sfsistat on_end(SMFICTX *ctx) { (void)ctx; return SMFIS_DISCARD; }

int main(int argc, char **argv)
{
    struct smfiDesc filter = {0};
    if (argc != 3)
        return 64;
    filter.xxfi_name = "peer";
    filter.xxfi_version = SMFI_VERSION;
    filter.xxfi_envfrom = on_envelope;
    filter.xxfi_envrcpt = on_envelope;
    if (strcmp(argv[2], "data") == 0) {
        filter.xxfi_data = on_data;
    } else {
        filter.xxfi_header = on_header;
        filter.xxfi_eoh = go_on;
        filter.xxfi_body = on_body;
        filter.xxfi_eom = on_end;
    }
    if (smfi_setconn(argv[1]) != MI_SUCCESS || smfi_register(filter) != MI_SUCCESS)
        return 69;
    return smfi_main();
}

/* Cortex-M4 on qemu's mps2-an386: the vector table, and the FPU switched on before newlib starts. */
extern void _start(void);

static void reset(void) {
  *(volatile unsigned *)0xE000ED88 |= 0xFu << 20; /* CPACR: full access to the FPU */
  __asm volatile("dsb\n\tisb");
  _start();
}

__attribute__((section(".vectors"), used)) static const struct {
  unsigned stack;
  void (*reset)(void);
} vectors = {0x20400000u, reset};

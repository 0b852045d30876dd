/* MKL takes slow kernels on processors that are not Intel's. With this shim, torch shows what it does where MKL is not throttled:

     gcc -shared -fPIC mkl_as_intel.c -o mkl_as_intel.so
     LD_PRELOAD=./mkl_as_intel.so venv/bin/python peers.py --systems torch,torch_pack --suffix _mklfix */
int mkl_serv_intel_cpu_true(void) { return 1; }

# shellcheck shell=bash
# Sourced by scripts/lab: starts QEMU, waits for its end, gives back the command's exit code.
# In: work, image, cpus, memory, timeout, share, terminal. Out: exit.

# QEMU's x87 code (cpu_clear_ignne, reached by every FXRSTOR and XRSTOR of any CPU) writes the word of the *first* CPU that also holds
# its global interrupt flag, unsynchronised: now and then a CLGI of that CPU is undone, an interrupt arrives between #VMEXIT and VMLOAD, and
# the machine or its guest crashes. So the first CPU is one more than asked for, and lab-session keeps the command off it.
#
# QEMU ends when a guest of this machine writes CR8 while KVM waits to interrupt it (helper_write_crN without the lock that cpu_interrupt
# asserts). UEFI firmware writes CR8 at the end of each timer interrupt; with 100 ms between two of them the next one is not due yet.
# Linux has no periodic timer.
#
# QEMU carries out a repeated MOVSB byte by byte: kernels that are told that it is fast copied for a quarter of all time.
machine=(
    -accel tcg,thread=multi -cpu "max,la57=off,erms=off,fsrm=off" -smp "$((cpus + 1))" -m "$memory" -nodefaults -no-user-config -display none -no-reboot
    -kernel "$cache/lab-kernel/vmlinuz" -initrd "$image"
    -append "console=ttyS0 panic=-1 mitigations=off quiet loglevel=4 random.trust_cpu=on tsc=reliable no_timer_check kvm.min_timer_period_us=100000"
    -serial "file:$work/console" -device virtio-serial-pci -device virtio-rng-pci
    -fsdev "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap" -device virtio-9p-pci,fsdev=host,mount_tag=host
    -fsdev "local,id=exchange,path=$work/exchange,security_model=none" -device virtio-9p-pci,fsdev=exchange,mount_tag=exchange
)
[[ -z $share ]] || machine+=(-fsdev "local,id=share,path=$share,security_model=none,multidevs=remap"
    -device virtio-9p-pci,fsdev=share,mount_tag=share)

if [[ -n $terminal ]]; then
    saved_tty=$(stty -g)
    machine+=(-chardev stdio,id=tty,signal=off -device virtconsole,chardev=tty)
else
    for stream in out err; do
        machine+=(-chardev "file,id=$stream,path=$work/$stream" -device "virtserialport,chardev=$stream,name=$stream")
    done
fi

start() {
    if [[ -n $terminal ]]; then
        qemu-system-x86_64 "${machine[@]}" <&0 &
        qemu=$!
        return
    fi
    rm -f "$work/out" "$work/err"
    mkfifo "$work/out" "$work/err"
    cat "$work/out" & pumps=($!)
    cat "$work/err" >&2 & pumps+=($!)
    qemu-system-x86_64 "${machine[@]}" </dev/null >"$work/qemu" 2>&1 &
    qemu=$!
}

# Whether the machine's first program came as far as the command. Now and then QEMU loses a timer's interrupt of the first CPU while
# the kernel boots, and nothing moves again. A boot takes 12 s on a quiet machine; nothing of the command has run before it is over.
is_up() {
    local deadline=$((SECONDS + 60))
    until [[ -e $work/exchange/ready ]]; do
        kill -0 "$qemu" 2>/dev/null || return 0 # Its end is looked at below.
        ((SECONDS < deadline)) || return 1
        sleep 0.2
    done
}

started=$SECONDS
if ((timeout)); then
    (trap 'kill $! 2>/dev/null' TERM; sleep "$timeout" & wait $!; touch "$work/late"; kill -9 "$(<"$work/pid")") 2>/dev/null &
    guard=$!
fi
for patience in 30 60 120; do
    start
    echo "$qemu" >"$work/pid"
    is_up $patience && break
    say "the emulated machine hangs in its boot, not up after $patience s; its last words:"
    tail -n 5 "$work/console" >&2 || true
    stop
done
[[ -z $qemu ]] || { wait "$qemu"; } 2>/dev/null || true
qemu=''
[[ -z ${guard:-} ]] || { kill "$guard" 2>/dev/null; wait "$guard" 2>/dev/null; } || true
((${#pumps[@]} == 0)) || wait "${pumps[@]}" || true
pumps=()
[[ ! -e $work/exchange/ready ]] || detail "up after $(<"$work/exchange/ready") s of its own time, all took $((SECONDS - started)) s"
[[ ! -e $work/late ]] || { say "stopped after $timeout s"; exit 124; }
if [[ ! -s $work/exchange/status ]]; then
    say "the emulated machine ended before the command did; its last words:"
    tail -n 25 "$work/console" "$work/qemu" >&2 2>/dev/null || true
    exit 125
fi
exit "$(<"$work/exchange/status")"

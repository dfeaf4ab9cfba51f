# shellcheck shell=bash
# Sourced by scripts/lab: starts QEMU, waits for its end, gives back the command's exit code.
# In: work, image, cpus, memory, timeout, share, terminal. Out: exit.

# QEMU's x87 code (cpu_clear_ignne, reached by every FXRSTOR and XRSTOR of any CPU) writes the word of the *first* CPU that also holds
# its global interrupt flag, unsynchronised: now and then a CLGI of that CPU is undone, an interrupt arrives between #VMEXIT and VMLOAD, and
# the machine or its guest crashes. So the first CPU is one more than asked for, and lab-session keeps the command off it.
machine=(
    -accel tcg,thread=multi -cpu max,la57=off -smp "$((cpus + 1))" -m "$memory" -nodefaults -no-user-config -display none -no-reboot
    -kernel "$cache/lab-kernel/vmlinuz" -initrd "$image"
    -append "console=ttyS0 panic=-1 mitigations=off quiet loglevel=4 random.trust_cpu=on tsc=reliable"
    -serial "file:$work/console" -device virtio-serial-pci -device virtio-rng-pci
    -fsdev "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap" -device virtio-9p-pci,fsdev=host,mount_tag=host
    -fsdev "local,id=exchange,path=$work/exchange,security_model=none" -device virtio-9p-pci,fsdev=exchange,mount_tag=exchange
)
[[ -z $share ]] || machine+=(-fsdev "local,id=share,path=$share,security_model=none,multidevs=remap"
    -device virtio-9p-pci,fsdev=share,mount_tag=share)

if [[ -n $terminal ]]; then
    saved_tty=$(stty -g)
    machine+=(-chardev stdio,id=tty,signal=off -device virtconsole,chardev=tty)
    qemu-system-x86_64 "${machine[@]}" <&0 &
    qemu=$!
else
    mkfifo "$work/out" "$work/err"
    cat "$work/out" & pumps+=($!)
    cat "$work/err" >&2 & pumps+=($!)
    for stream in out err; do
        machine+=(-chardev "file,id=$stream,path=$work/$stream" -device "virtserialport,chardev=$stream,name=$stream")
    done
    qemu-system-x86_64 "${machine[@]}" </dev/null >"$work/qemu" 2>&1 &
    qemu=$!
fi
if ((timeout)); then
    (trap 'kill $! 2>/dev/null' TERM; sleep "$timeout" & wait $!; kill -9 "$qemu" && touch "$work/late") 2>/dev/null &
    guard=$!
fi
started=$SECONDS
{ wait "$qemu"; } 2>/dev/null || true
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

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Names that are used inside and outside of the virtual machine.
const (
	jobPath     = "/job.json"
	resultsPort = "results"
	// exitLine begins the last line of the results; the exit code follows. Without it the
	// results don't count.
	exitLine = "meshd kernel lab: exit "
)

// machine is one virtual machine, which does one job.
type machine struct {
	dir    string // for what belongs to this run
	job    job
	icount bool // time is what is executed
	shift  int  // an instruction takes 2^shift ns then
	output io.Writer
	failed []string // tests that did, after run
}

// memory is enough for 20 nodes and the image; QEMU takes it from the real machine as it
// is used.
const memory = "3072"

// processor has what the kernel's WireGuard and Go's cryptography can use: without, they
// rotate words, an instruction that takes QEMU long because of its flags, and everything
// takes twice as long. Without rdrand the first random number takes a second. With xsave,
// and so with AVX and "max", the machine comes to a stop.
const processor = "qemu64,+rdrand,+ssse3,+sse4.1,+sse4.2,+popcnt,+movbe,+bmi1,+bmi2,+adx,+aes,+pclmulqdq"

// idleShift makes each instruction take 2^2 ns, about what QEMU takes for one on an idle machine, so
// timeouts fit as they do without. A smaller one makes a faster processor, and QEMU works the longer for
// as much time of the virtual machine when there is something to do.
const idleShift = 2

// countInstructions has time be the number of executed instructions, which take 2^shift ns each. QEMU
// counts only when one thread emulates all processors. Where the virtual machine only waits, its clock
// jumps to what it waits for.
func countInstructions(shift int) []string {
	return []string{"-accel", "tcg,thread=single", "-smp", "1", "-icount", fmt.Sprintf("shift=%d,sleep=off", shift)}
}

// runTwice runs the machine, and a second time if the machine itself dies.
func (m *machine) runTwice(ctx context.Context, limit time.Duration) (int, error) {
	one := func() (int, error) {
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		return m.run(ctx)
	}
	code, err := one()
	if err == nil || ctx.Err() != nil {
		return code, err
	}
	fmt.Fprintf(os.Stderr, "kernel: %v\nkernel: once more, in a new virtual machine\n", err)
	return one()
}

// run starts the machine, passes on what the job prints, and returns its exit
// code. An error says that the job was not done to its end.
func (m *machine) run(ctx context.Context) (int, error) {
	img, err := getImage(ctx)
	if err != nil {
		return 0, err
	}
	initrd := filepath.Join(m.dir, "initrd")
	if err := m.writeInitrd(initrd, img); err != nil {
		return 0, err
	}
	console := filepath.Join(m.dir, "console")
	args := []string{
		"-machine", "q35", "-m", memory,
		"-cpu", processor,
		"-nodefaults", "-no-reboot", "-display", "none", // and no network device
		"-kernel", img.vmlinuz, "-initrd", initrd,
		// A kernel that finds itself in error stops at once, and QEMU with it. It would
		// ask an emulated HPET for the time, which takes ten times as long as the TSC.
		// QEMU would translate a program anew wherever it is put in memory, so every
		// start of it takes half the time at one address.
		"-append", "console=ttyS0 quiet panic=-1 oops=panic softlockup_panic=1 watchdog_thresh=30 mitigations=off tsc=reliable norandmaps",
	}
	if m.icount {
		args = append(args, countInstructions(m.shift)...)
	} else {
		args = append(args, "-accel", "tcg,thread=multi", "-smp", "2")
	}
	if m.job.Shell {
		return 0, m.interact(ctx, append(args, "-serial", "mon:stdio"))
	}
	args = append(args,
		"-serial", "file:"+console,
		"-chardev", "file,id=results,path=/proc/self/fd/3",
		"-device", "virtio-serial-pci", "-device", "virtserialport,chardev=results,name="+resultsPort)
	code, err := m.follow(ctx, args)
	if err != nil {
		return 0, fmt.Errorf("%w; the console's last lines:\n%s", err, lastLines(console, 60))
	}
	return code, nil
}

// qemu is the program that emulates the machine.
const qemu = "qemu-system-x86_64"

// follow runs QEMU and reads results until there are no more.
func (m *machine) follow(ctx context.Context, args []string) (int, error) {
	cmd := exec.CommandContext(ctx, qemu, args...)
	// If this program is killed, so is QEMU. The kernel sends the signal when the
	// thread ends that started it, prctl(2).
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	results, end, err := os.Pipe()
	if err != nil {
		return 0, fmt.Errorf("make pipe for results: %w", err)
	}
	defer results.Close()
	cmd.ExtraFiles = []*os.File{end} // descriptor 3
	err = cmd.Start()
	_ = end.Close()
	if err != nil {
		return 0, fmt.Errorf("start QEMU: %w", err)
	}
	if m.icount {
		if err := keepOnOneProcessor(cmd.Process.Pid); err != nil {
			fmt.Fprintf(os.Stderr, "kernel: %v\n", err) // it is slower then
		}
	}
	var failed failures
	code, readErr := passOn(results, io.MultiWriter(m.output, &failed))
	m.failed = failed
	err = cmd.Wait()
	switch {
	case ctx.Err() != nil:
		return 0, fmt.Errorf("the virtual machine did not end in time: %w", context.Cause(ctx))
	case err != nil:
		return 0, fmt.Errorf("run QEMU: %w: %s", err, stderr.String())
	case readErr != nil:
		return 0, readErr
	}
	return code, nil
}

// keepOnOneProcessor has all threads that a process will make run on one of the processors. Of QEMU's, one
// executes instructions and one waits for timers; where time is counted they take turns, thousands of times
// a second, and on two processors each turn would have to wake the other one.
func keepOnOneProcessor(pid int) error {
	var all, one unix.CPUSet
	if err := unix.SchedGetaffinity(pid, &all); err != nil {
		return fmt.Errorf("ask for processors of QEMU: %w", err)
	}
	var processors []int
	for cpu := range 1024 { // as many as a CPUSet has
		if all.IsSet(cpu) {
			processors = append(processors, cpu)
		}
	}
	one.Set(processors[rand.IntN(len(processors))])
	if err := unix.SchedSetaffinity(pid, &one); err != nil {
		return fmt.Errorf("keep QEMU on processor %v: %w", one, err)
	}
	return nil
}

// failures are the names of tests that have failed, taken from lines.
type failures []string

func (f *failures) Write(line []byte) (int, error) {
	// Subtests are indented.
	if rest, ok := strings.CutPrefix(strings.TrimPrefix(string(line), "\n"), "--- FAIL: "); ok {
		name, _, _ := strings.Cut(rest, " ")
		*f = append(*f, name)
	}
	return len(line), nil
}

// errNoExit means that the results end without an exit code.
var errNoExit = errors.New("the virtual machine ended without a result of the job")

// passOn copies lines until the results end, and returns the exit code from
// their last one.
func passOn(results io.Reader, w io.Writer) (int, error) {
	r := bufio.NewReader(results)
	held := "" // an empty line, which may be the one before the exit code
	for {
		line, err := r.ReadString('\n')
		if code, ok := strings.CutPrefix(line, exitLine); ok && err == nil {
			_, _ = io.Copy(io.Discard, r)
			n, err := strconv.Atoi(strings.TrimSpace(code))
			if err != nil {
				return 0, fmt.Errorf("read exit code: %w", err)
			}
			return n, nil
		}
		text := held + line
		if held = ""; line == "\n" {
			text, held = text[:len(text)-1], line
		}
		if _, werr := io.WriteString(w, text); werr != nil {
			return 0, fmt.Errorf("pass on results: %w", werr)
		}
		if err == io.EOF {
			return 0, errNoExit
		}
		if err != nil {
			return 0, fmt.Errorf("read results: %w", err)
		}
	}
}

// interact connects the machine's console with this program's terminal.
func (m *machine) interact(ctx context.Context, args []string) error {
	cmd := exec.CommandContext(ctx, qemu, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("run QEMU: %w", err)
	}
	return nil
}

// writeInitrd writes the image and after it what this run adds: the job, its files, and
// this program as the first process.
func (m *machine) writeInitrd(path string, img image) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("make initrd: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	base, err := os.Open(img.initrd)
	if err != nil {
		return fmt.Errorf("make initrd: %w", err)
	}
	defer base.Close()
	if _, err := io.Copy(f, base); err != nil {
		return fmt.Errorf("make initrd: %w", err)
	}
	text, err := json.Marshal(m.job)
	if err != nil {
		return fmt.Errorf("write job: %w", err)
	}
	a := newArchive(f)
	if err := errors.Join(a.bytes(jobPath, 0o644, text), a.copy("/init", "/proc/self/exe")); err != nil {
		return err
	}
	for _, c := range m.job.Commands {
		if err := a.dir(c.Dir); err != nil {
			return err
		}
	}
	for _, file := range m.job.Files {
		to, err := place(file)
		if err != nil {
			return err
		}
		if err := a.copy(to, file); err != nil {
			return err
		}
	}
	return a.Close()
}

// lastLines returns the end of a file, or why there is none.
func lastLines(path string, count int) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.SplitAfter(strings.ReplaceAll(string(b), "\r", ""), "\n")
	return strings.Join(lines[max(0, len(lines)-count):], "")
}

// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// machine is one virtual machine.
type machine struct {
	n    int
	name string
	dir  string          // for what belongs to this run
	gone <-chan struct{} // closed when there are no machines any more
}

func mac(n int) string     { return fmt.Sprintf("52:54:00:aa:00:%02x", n) }
func address(n int) string { return fmt.Sprintf("10.77.0.%d", n) }

func (m *machine) agent() string   { return filepath.Join(m.dir, m.name+".agent") }
func (m *machine) console() string { return filepath.Join(m.dir, m.name+".console") }

// qemu is the command line of one machine, emulated: what a machine writes to its
// disk is gone with it.
func (m *machine) qemu(img image, payload string) []string {
	return []string{
		"qemu-system-x86_64", "-machine", "q35", "-accel", "tcg,thread=multi", "-smp", "1", "-m", "512",
		"-cpu", "qemu64,+rdrand", // without rdrand the first random number takes a second
		"-nodefaults", "-display", "none",
		"-kernel", img.kernel, "-initrd", img.initrd,
		"-append", "root=/dev/vda rw console=ttyS0 quiet panic=-1 mitigations=off net.ifnames=0 " +
			// On a busy machine the emulated timer is so late that the kernel takes it for
			// broken, and gives up; no_timer_check makes it not look. systemd gives up, too.
			"no_timer_check systemd.default_timeout_start_sec=1800 systemd.hostname=" + m.name,
		"-serial", "file:" + m.console(),
		"-drive", "file=" + img.disk + ",format=raw,if=none,id=disk,snapshot=on", "-device", "virtio-blk-pci,drive=disk",
		"-drive", "file=" + payload + ",format=raw,if=none,id=payload,readonly=on", "-device", "virtio-blk-pci,drive=payload",
		"-netdev", "socket,id=net,mcast=230.0.0.77:17777,localaddr=127.0.0.1", "-device", "virtio-net-pci,netdev=net,mac=" + mac(m.n),
		"-device", "virtio-serial-pci", "-chardev", "socket,path=" + m.agent() + ",server=on,wait=off,id=agent",
		"-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0",
	}
}

// start starts machines in a network namespace of their own, so no packet leaves or
// enters it.
func start(t *testing.T, count int) []*machine {
	t.Helper()
	dir := t.TempDir()
	img, payload := getImage(t), makePayload(t, dir)
	script := []string{"ip link set lo up"}
	gone := make(chan struct{})
	var machines []*machine
	for n := 1; n <= count; n++ {
		m := &machine{n: n, name: fmt.Sprintf("vm%d", n), dir: dir, gone: gone}
		machines = append(machines, m)
		script = append(script, "'"+strings.Join(m.qemu(img, payload), "' '")+"' &")
	}
	script = append(script, "wait -n") // when one is gone, so are the others
	log, err := os.Create(filepath.Join(dir, "qemu.log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("unshare", "--net", "--pid", "--fork", "--kill-child", "bash", "-c", strings.Join(script, "\n"))
	cmd.Stdout, cmd.Stderr = log, log
	// If this program is killed, so are they. The kernel sends the signal when the
	// thread ends that started them, prctl(2).
	runtime.LockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = cmd.Wait()
		close(gone)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-gone
		log.Close()
		if t.Failed() {
			for _, m := range machines {
				t.Logf("%s: %s", m.console(), command(t, "tail", "-n", "15", m.console()))
			}
			t.Logf("qemu: %s", command(t, "tail", log.Name()))
		}
	})
	return machines
}

// patience is how long a condition may take on a machine that a busy machine emulates.
const patience = 20 * time.Minute

// eventually waits until f returns nil.
func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	end := time.Now().Add(patience)
	for {
		err := f()
		if err == nil {
			return
		}
		if errors.Is(err, errGone) || time.Now().After(end) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

var errGone = errors.New("QEMU has ended")

// try runs a script and returns what it printed on standard output.
func (m *machine) try(script string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	go func() {
		select {
		case <-m.gone:
			cancel()
		case <-ctx.Done():
		}
	}()
	out, err := execute(ctx, m.agent(), script)
	select {
	case <-m.gone:
		err = errGone
	default:
	}
	if err != nil {
		return out, fmt.Errorf("%s: %s: %w", m.name, script, err)
	}
	return out, nil
}

// sh runs a script that must succeed.
func (m *machine) sh(t *testing.T, script string) string {
	t.Helper()
	out, err := m.try(script)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// waitBooted waits until the machine has started all units, and mounts the payload: for a
// disk in fstab, systemd's time limit could not be set.
func (m *machine) waitBooted(t *testing.T) {
	t.Helper()
	eventually(t, m.name+" boots", func() error {
		out, err := m.try("systemctl is-system-running --wait || true; mountpoint -q /payload || mount -o ro /dev/vdb /payload")
		if err == nil && !strings.HasPrefix(out, "running") {
			failed, _ := m.try("systemctl --failed --no-legend")
			return fmt.Errorf("it is %s%s", out, failed)
		}
		return err
	})
}

// reboot restarts the machine and waits until it is back.
func (m *machine) reboot(t *testing.T) {
	t.Helper()
	const boot = "cat /proc/sys/kernel/random/boot_id"
	before := m.sh(t, boot)
	_, _ = m.try("systemctl --no-block reboot") // the agent may be gone before it answers
	eventually(t, m.name+" goes down and comes up", func() error {
		now, err := m.try(boot)
		if err == nil && strings.TrimSpace(now) == before {
			return fmt.Errorf("it is still up")
		}
		return err
	})
	m.waitBooted(t)
}

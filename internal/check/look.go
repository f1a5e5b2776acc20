// SPDX-License-Identifier: Apache-2.0

package check

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/meshd/meshd/internal/cni"
	"github.com/meshd/meshd/internal/config"
	"github.com/meshd/meshd/internal/k3s"
	"github.com/meshd/meshd/internal/state"
)

// Options are the inputs of ReadFacts besides the configuration.
type Options struct {
	StateDir string
	Running  bool         // a daemon answers at the control socket
	Overlay  []netip.Addr // this node's addresses, from the daemon
	// InternalIPs are this node's, from the daemon, which keeps them.
	InternalIPs []netip.Prefix
	Endpoints   []netip.AddrPort // of this node's peers, from the daemon
	Neighbors   []netip.Addr     // internal IPs of the nodes reached over the LAN, from the daemon
	Members     []Member         // of etcd on other nodes, from the daemon
	Nodes       int              // how many nodes the daemon knows, including its own
	Config      []error          // errors of config.Load about files that the configuration names
}

// ReadFacts reads the facts. It leaves no changes, except that the kernel may load a module; it
// binds ports only for a moment. What can't be read is in Facts.Unread.
func ReadFacts(ctx context.Context, cfg config.Config, o Options) Facts {
	f := Facts{Root: os.Geteuid() == 0, Running: o.Running, Nodes: o.Nodes, Overlay: o.Overlay, InternalIPs: o.InternalIPs, Endpoints: o.Endpoints, Neighbors: o.Neighbors, Members: o.Members, Config: o.Config}
	f.read("permission", func() (err error) { f.Capable, err = capable(); return err })
	f.lookState(o.StateDir)
	f.read("links", f.lookLinks)
	f.read("clock", f.lookClock)
	f.read("k3s", func() (err error) { f.K3s, err = k3s.ReadSettings("/"); return err })
	f.read("k3s", func() (err error) { f.K3sCert, err = k3s.ReadCertificate("/", f.K3s); return err })
	if cfg.CNI.Enabled {
		f.read("cni", func() error { return f.lookCNI(cfg) })
	}
	f.read("unit", func() error { return f.lookUnit(ctx, cfg) })
	if f.Capable {
		f.read("kernel", func() error { return f.lookKernel(ctx, cfg) })
		f.read("firewall", func() error { return f.lookFilters(ctx, cfg) })
	}
	ours := f.lookDevices(ctx, cfg)
	f.read("ports", func() error { return f.lookPorts(cfg, ours) })
	f.Reach = reach(ctx, cfg, f.Host.Addresses)
	return f
}

// read calls look and records its error in Unread.
func (f *Facts) read(what string, look func() error) {
	if err := look(); err != nil {
		f.Unread = append(f.Unread, Unread{what, err})
	}
}

// capable reports whether the process may configure the network and make a network
// namespace (capabilities(7)).
func capable() (bool, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData // of 32 capabilities each
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false, fmt.Errorf("read capabilities: %w", err)
	}
	const want = 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_SYS_ADMIN
	if data[0].Effective&want != want {
		return false, nil
	}
	return ownsNetwork()
}

// ownsNetwork reports whether the process's capabilities apply to its network namespace.
// They don't in a user namespace below the one that owns it (ioctl_ns(2)).
func ownsNetwork() (bool, error) {
	ns, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return false, fmt.Errorf("open network namespace: %w", err)
	}
	defer ns.Close()
	owner, err := unix.IoctlRetInt(int(ns.Fd()), unix.NS_GET_USERNS)
	if errors.Is(err, unix.EPERM) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("ask for the owner of the network namespace: %w", err)
	}
	return true, unix.Close(owner)
}

func (f *Facts) lookState(dir string) {
	f.State = State{Path: dir, Free: -1}
	id, err := state.MachineID()
	f.State.MachineIDErr = err
	f.State.Seen, f.State.Err = state.Inspect(dir, id)
	f.State.Read = true
	if errors.Is(f.State.Err, fs.ErrPermission) {
		f.Unread = append(f.Unread, Unread{"state", f.State.Err})
		f.State.Err, f.State.Read = nil, false
	}
	f.Running = f.Running || f.State.Seen.Locked
	parent := existing(dir)
	if f.Root { // the daemon runs as root; other users' permissions don't matter
		f.State.WriteErr = writable(parent)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(parent, &st); err == nil {
		f.State.Free = int64(st.Bavail) * int64(st.Bsize) // the type of Bsize differs by architecture
	}
}

// existing returns the directory itself, or its nearest parent that exists.
func existing(dir string) string {
	for {
		if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) || dir == filepath.Dir(dir) {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}

// writable returns an error if no files can be made in a directory.
func writable(dir string) error {
	info, err := os.Stat(dir)
	switch {
	case err != nil:
		return err
	case !info.IsDir():
		return fmt.Errorf("%s: %w", dir, unix.ENOTDIR)
	}
	return unix.Access(dir, unix.W_OK|unix.X_OK)
}

func (f *Facts) lookClock() error {
	var t unix.Timex // without modes, adjtimex(2) only reads
	if _, err := unix.Adjtimex(&t); err != nil {
		return fmt.Errorf("read clock: %w", err)
	}
	f.ClockRead, f.ClockSynced = true, t.Status&unix.STA_UNSYNC == 0
	return nil
}

func (f *Facts) lookCNI(cfg config.Config) error {
	c := cfg.CNI
	f.CNI.Config = cni.Config{
		ConfDir: c.ConfDir, BinDir: c.BinDir, PluginSource: c.PluginSource, Bridge: c.Bridge,
		PodCIDRs: cfg.Cluster.PodCIDRs(max(0, cfg.StaticSlot())), // any will do
	}
	s, err := cni.Observe(f.CNI.Config)
	if errors.Is(err, unix.ENOTDIR) {
		f.CNI.Unwritable = []string{c.ConfDir}
		f.CNI.Read = true
		return nil
	}
	if err != nil {
		return err
	}
	f.CNI.Status, f.CNI.Read = s, true
	if !f.Root {
		return nil
	}
	for _, d := range writtenCNI(cfg, s) {
		if writable(existing(d.Path)) != nil {
			f.CNI.Unwritable = append(f.CNI.Unwritable, d.Path)
		}
	}
	return nil
}

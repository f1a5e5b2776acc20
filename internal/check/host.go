// SPDX-License-Identifier: Apache-2.0

package check

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/meshd/meshd/internal/cni"
	"github.com/meshd/meshd/internal/config"
	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/internal/state"
)

// Free disk space in bytes that the state directory should have, and must have. It needs
// some hundred kilobytes in a mesh of a hundred nodes.
const (
	wantedSpace = 32 << 20
	leastSpace  = 1 << 20
)

// state reports errors of the state directory: its identity and its other files must be
// readable, and it must be writable.
func (f Facts) state() []Finding {
	const what = "state"
	s := f.State
	var out []Finding
	add := func(level Level, advice, format string, args ...any) {
		out = append(out, Finding{level, what, fmt.Sprintf(format, args...), advice})
	}
	if s.MachineIDErr != nil {
		out = append(out, errorFindings(what, s.MachineIDErr)...)
	}
	if s.Err != nil {
		out = append(out, errorFindings(what, s.Err)...)
	}
	if s.Seen.Origin == state.Cloned {
		add(Warning, "none needed if this machine is a copy; if it is not, restore the old /etc/machine-id", "%s belongs to another machine: this node will make itself a new identity", filepath.Join(s.Path, state.IdentityFile))
	}
	if s.WriteErr != nil {
		add(Error, "make the directory writable: is its file system mounted read-only?", "%s can't be written to: %v", s.Path, s.WriteErr)
	}
	switch {
	case s.Free < 0:
	case s.Free < leastSpace:
		add(Error, "free some space", "%s has %d KiB of disk space left", s.Path, s.Free>>10)
	case s.Free < wantedSpace:
		add(Warning, "free some space", "%s has %d MiB of disk space left", s.Path, s.Free>>20)
	}
	switch {
	case out != nil || !s.Read:
		return out
	case s.Seen.Origin == state.Loaded:
		return ok(what, "this is node %s%s", s.Seen.ID, f.running())
	}
	return ok(what, "%s is ready for the first start", s.Path)
}

func (f Facts) running() string {
	if f.Running {
		return ", whose daemon runs"
	}
	return ""
}

// kernel reports features that the kernel lacks.
func (f Facts) kernel(cfg config.Config) []Finding {
	if !f.Capable {
		return nil
	}
	out := append(f.wireguard(cfg), f.nft()...)
	k := f.Kernel
	if cfg.CNI.Enabled && !k.BridgeFilter {
		out = append(out, Finding{Error, "kernel", "the module br_netfilter is not available: pods of one node may not reach each other through Services, and the node does not come online", "install a kernel with br_netfilter, and run: modprobe br_netfilter (in a container, on its host)"})
	}
	if _, v6 := cfg.Cluster.Families(); v6 && !k.IPv6 {
		out = append(out, Finding{Error, "kernel", "the cluster has IPv6 ranges, and IPv6 is off on this host", "switch it on (no ipv6.disable=1 at boot; sysctl net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.default.disable_ipv6=0), or leave IPv6 ranges out"})
	}
	return out
}

func (f Facts) wireguard(cfg config.Config) []Finding {
	const what = "wireguard"
	const install = "install a kernel with WireGuard (Linux 5.6 and later have it), and run: modprobe wireguard"
	wanted := netcfg.Implementation(cfg.WireGuard.Implementation)
	switch {
	case f.Kernel.WireGuard && wanted != netcfg.Userspace:
		return ok(what, "the kernel has it")
	case wanted == netcfg.Kernel:
		return []Finding{{Error, what, "the kernel has no WireGuard, but wireguard.implementation is kernel", install + "; or set wireguard.implementation to auto"}}
	case !f.Kernel.TUN:
		return []Finding{{Error, what, "the kernel has no WireGuard, and there is no /dev/net/tun for meshd's own", install + "; or run: modprobe tun"}}
	case wanted == netcfg.Userspace:
		return ok(what, "/dev/net/tun is there for wireguard.implementation: userspace")
	}
	return []Finding{{Warning, what, "the kernel has no WireGuard; meshd will use its own, which is slower, and traffic pauses while the daemon restarts", install}}
}

func (f Facts) nft() []Finding {
	const what = "nftables"
	switch {
	case !f.Kernel.NFT:
		return []Finding{{Error, what, "the program nft is not installed, or not in the PATH", "run: apt install nftables"}}
	case f.Kernel.FirewallErr != nil:
		return []Finding{{Error, what, fmt.Sprintf("the kernel or nft refuse meshd's rules: %v", f.Kernel.FirewallErr), "run: modprobe -a nf_tables nft_fib_inet nft_masq nft_ct; if these modules are missing, install another kernel"}}
	}
	return ok(what, "kernel and nft accept meshd's rules")
}

// cni reports what containerd lacks for pods.
func (f Facts) cni(cfg config.Config) []Finding {
	const what = "cni"
	if !cfg.CNI.Enabled || !f.CNI.Read {
		return nil
	}
	var out []Finding
	var missing []string
	for _, p := range f.CNI.Status.Plugins {
		if !p.Works && !p.InSource {
			missing = append(missing, p.Name)
		}
	}
	if missing != nil {
		out = append(out, Finding{Error, what, fmt.Sprintf("the plugins %s are neither in %s nor in %s", strings.Join(missing, ", "), cfg.CNI.BinDir, cfg.CNI.PluginSource), "run: apt install containernetworking-plugins"})
	} else if _, err := cni.Plan(f.CNI.Config, f.CNI.Status); err != nil {
		out = append(out, errorFindings(what, err)...)
	}
	for _, p := range cni.Problems(f.CNI.Config, f.CNI.Status) {
		out = append(out, Finding{Error, what, p.Text, p.Advice})
	}
	for _, dir := range f.CNI.Unwritable {
		out = append(out, Finding{Error, what, dir + " can't be written to", "make it writable, or name another one with cni.conf-dir and cni.bin-dir"})
	}
	if out == nil {
		return ok(what, "plugins and directories are in order")
	}
	return out
}

// SPDX-License-Identifier: Apache-2.0

package check

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/meshd/meshd/internal/config"
	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/internal/netcfg/host"
)

// lookKernel finds out what the kernel supports, by trials in a temporary network
// namespace.
func (f *Facts) lookKernel(ctx context.Context, cfg config.Config) error {
	k := &f.Kernel
	if tun, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0); err == nil {
		k.TUN = true
		_ = tun.Close()
	}
	_, err := exec.LookPath("nft")
	k.NFT = err == nil
	k.BridgeFilter = hasBridgeFilter(ctx)
	k.IPv6 = sysctl("net/ipv6/conf/all/disable_ipv6") == "0" && sysctl("net/ipv6/conf/default/disable_ipv6") == "0"
	return inNamespace(func() error {
		if k.NFT {
			k.FirewallErr = tryFirewall(ctx, cfg)
		}
		k.WireGuard, err = tryWireGuard()
		return err
	})
}

// inNamespace runs f in a new network namespace. The goroutine never unlocks its thread,
// so the thread ends with it, and the namespace with the thread.
func inNamespace(f func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			result <- fmt.Errorf("make network namespace: %w", err)
			return
		}
		result <- f()
	}()
	return <-result
}

// tryWireGuard reports whether the kernel can make a WireGuard device.
func tryWireGuard() (bool, error) {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return false, fmt.Errorf("open rtnetlink: %w", err)
	}
	defer nl.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "wg0"
	err = nl.LinkAdd(&netlink.Wireguard{LinkAttrs: attrs})
	if errors.Is(err, unix.EOPNOTSUPP) { // rtnetlink's error for an unknown kind of link
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("try kernel WireGuard: %w", err)
	}
	return true, nil
}

// tryFirewall applies the firewall rules of a node of this cluster.
func tryFirewall(ctx context.Context, cfg config.Config) (err error) {
	kernel, err := host.Open(host.Options{Interface: cfg.WireGuard.Interface, Bridge: cfg.CNI.Bridge})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, kernel.Close()) }()
	want := Facts{}.desired(cfg)
	return kernel.Apply(ctx, netcfg.Diff(netcfg.State{}, netcfg.State{Firewall: want.Firewall}, netcfg.Options{}))
}

// hasBridgeFilter reports whether br_netfilter is loaded or can be loaded. modprobe -n
// only searches for the module.
func hasBridgeFilter(ctx context.Context) bool {
	if _, err := os.Stat("/proc/sys/net/bridge"); err == nil {
		return true
	}
	return exec.CommandContext(ctx, "modprobe", "-n", "-q", "br_netfilter").Run() == nil
}

// sysctl returns a kernel parameter, or "" if there is none.
func sysctl(path string) string {
	b, _ := os.ReadFile("/proc/sys/" + path)
	return strings.TrimSpace(string(b))
}

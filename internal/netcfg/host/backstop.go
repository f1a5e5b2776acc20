// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/meshd/meshd/internal/netcfg"
)

// A backstop is a route to a whole range of the mesh that the kernel uses only if there
// is no other route. It belongs to no device, so it remains when the device is deleted or
// down, and while the daemon is not running. Without it, packets to the mesh would then
// take the default route, unencrypted. It also keeps the guard chain effective in that
// time: packets that arrive with a source in the mesh are dropped, because the default
// route, on which they arrive, is then not the route to their source.
//
// It is a blackhole route, which sends no error. During a gap of a second, a pod only
// sees a delay, because TCP repeats lost packets, including the first SYN. An unreachable
// route would send ICMP errors, which end each attempt to connect with EHOSTUNREACH
// (tcp_v4_err) and give an error to connected UDP sockets. The disadvantage is that
// programs on the host itself get EINVAL instead of EHOSTUNREACH.
//
// systemd-networkd deletes the route when it starts, unless ManageForeignRoutes= is off.
// Then only the chain exit protects until the daemon has added the route again.
func (k *Kernel) backstop(dst netip.Prefix) *netlink.Route {
	return &netlink.Route{
		Dst:      ipNetOf(dst),
		Type:     unix.RTN_BLACKHOLE,
		Protocol: k.protocol,
		Priority: netcfg.BackstopMetric,
		Table:    netcfg.TableOf(dst),
	}
}

// isBackstop reports whether one of our routes is a backstop, or one that someone has
// modified. In IPv6 the kernel shows it on the loopback device.
func isBackstop(r netlink.Route) bool {
	return r.Priority == netcfg.BackstopMetric && r.Table == netcfg.TableOf(destination(r))
}

// addBackstop adds a backstop, or restores one that was modified.
func (k *Kernel) addBackstop(dst netip.Prefix) error {
	k.writes.Add(1)
	err := k.nl.RouteAdd(k.backstop(dst))
	if errors.Is(err, unix.EEXIST) {
		err = k.replaceBackstop(dst)
	}
	if err != nil {
		return fmt.Errorf("add route blackhole %s metric %d: %w", dst, netcfg.BackstopMetric, err)
	}
	return nil
}

func (k *Kernel) replaceBackstop(dst netip.Prefix) error {
	routes, err := k.ownRoutes()
	if err != nil {
		return err
	}
	for _, r := range routes {
		if isBackstop(r) && destination(r) == dst {
			k.writes.Add(1)
			return k.nl.RouteReplace(k.backstop(dst))
		}
	}
	return fmt.Errorf("a route that is not meshd's has this metric (`ip route show %s`)", dst)
}

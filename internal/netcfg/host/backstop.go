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

// A backstop is a route to a whole range of the mesh that counts only while there is
// no other one. It hangs on no device, so it is there when the device is deleted or
// down, and while the daemon is away. Without it, what goes to the mesh would then
// take the default route, in plain text. It also makes the guard drop sources of the
// mesh that come in meanwhile: a way back by the default route doesn't count.
//
// It is a blackhole, which tells a sender nothing: of a gap of a second a pod notices a
// delay, because TCP repeats what got lost, a first SYN included. The ICMP message of
// an unreachable route would end each attempt to connect with EHOSTUNREACH
// (tcp_v4_err), and give an error to UDP sockets that are connected. The price is that
// programs of the host itself get EINVAL instead of EHOSTUNREACH.
//
// systemd-networkd deletes it when it starts, unless its ManageForeignRoutes= is off:
// then the chain exit stands alone until the daemon has put it back.
func backstop(dst netip.Prefix) *netlink.Route {
	return &netlink.Route{
		Dst:      ipNetOf(dst),
		Type:     unix.RTN_BLACKHOLE,
		Protocol: netcfg.RouteProtocol,
		Priority: netcfg.BackstopMetric,
		Table:    unix.RT_TABLE_MAIN,
	}
}

// isBackstop reports whether a route of ours is a backstop, or what somebody has made of
// one. In IPv6 the kernel shows it on the loopback device.
func isBackstop(r netlink.Route) bool {
	return r.Priority == netcfg.BackstopMetric && r.Table == unix.RT_TABLE_MAIN
}

// addBackstop adds a backstop, or makes one again of what it has been changed to.
func (k *Kernel) addBackstop(dst netip.Prefix) error {
	k.writes.Add(1)
	err := k.nl.RouteAdd(backstop(dst))
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
			return k.nl.RouteReplace(backstop(dst))
		}
	}
	return fmt.Errorf("a route that is not meshd's has this metric (`ip route show %s`)", dst)
}

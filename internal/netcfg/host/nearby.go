// SPDX-License-Identifier: Apache-2.0

package host

import (
	"cmp"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/meshd/meshd/internal/mesh"
)

// resolverFiles list the resolvers of this host: the file of resolv.conf(5), and the file
// with the resolvers behind systemd-resolved's stub.
var resolverFiles = []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"}

// maxResolverFile is the most that is read of such a file, in bytes. It is far more than
// needed: a resolver uses three name servers.
const maxResolverFile = 1 << 16

// nearby selects what the host reaches without the mesh: networks of links that are not
// ours, networks behind routers, and the routers. Link-local networks are left out, since no
// node may announce them, and so are default routes. A VPN writes one as several networks
// that are too wide to be announced.
func nearby(raw rawFacts, ls links) mesh.Nearby {
	var out mesh.Nearby
	attach := func(link int, p netip.Prefix, routed bool) {
		l, ok := ls.find(link)
		role := roleOther // a route with several next hops may use several links
		if ok {
			role = ls.role(l)
		}
		if role == roleOwn || holdsServices(l) || !ok && !routed || mesh.CheckNetwork(p.Masked()) != nil {
			return
		}
		out.Attached = append(out.Attached, mesh.AttachedNetwork{
			Prefix: p.Masked(), Link: l.name, LAN: role == roleLAN, Containers: role == roleContainers, Routed: routed,
			Down: ok && l.flags&net.FlagRunning == 0,
		})
	}
	for _, a := range raw.addrs {
		attach(a.link, a.prefix, false)
	}
	for _, r := range raw.routes {
		link := 0 // no link
		if len(r.links) == 1 {
			link = r.links[0]
		}
		attach(link, r.to, len(r.via) > 0)
		if l, ok := ls.find(link); len(r.links) > 1 || ok && ls.role(l) != roleOwn {
			out.Routers = append(out.Routers, r.via...)
		}
	}
	slices.SortFunc(out.Attached, func(a, b mesh.AttachedNetwork) int {
		return cmp.Or(mesh.ComparePrefix(a.Prefix, b.Prefix), bit(a.Routed)-bit(b.Routed), strings.Compare(a.Link, b.Link))
	})
	out.Attached = slices.CompactFunc(out.Attached, func(a, b mesh.AttachedNetwork) bool {
		return a.Prefix == b.Prefix && (a.Link == b.Link || b.Routed)
	})
	slices.SortFunc(out.Routers, netip.Addr.Compare)
	out.Routers = slices.Compact(out.Routers)
	return out
}

// resolvers reads the name servers listed in the files. A file that can't be read is
// skipped: not every host has both.
func resolvers(files []string) []netip.Addr {
	var out []netip.Addr
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			continue
		}
		text, _ := io.ReadAll(io.LimitReader(f, maxResolverFile))
		f.Close()
		out = append(out, nameServers(string(text))...)
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// nameServers parses the text of a resolv.conf.
func nameServers(text string) []netip.Addr {
	var out []netip.Addr
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(fields[1]); err == nil && mesh.CheckHost(a.WithZone("")) == nil {
			out = append(out, a.Unmap().WithZone(""))
		}
	}
	return out
}

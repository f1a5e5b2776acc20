// SPDX-License-Identifier: Apache-2.0

package host

import (
	"cmp"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
)

// resolverFiles list the resolvers of this host: the file of resolv.conf(5), and the file
// with the resolvers behind systemd-resolved's stub.
var resolverFiles = []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"}

// maxResolverFile is the most that is read of such a file, in bytes. It is far more than
// needed: a resolver uses three name servers.
const maxResolverFile = 1 << 16

// nearby selects what the host reaches without the mesh: networks of links that are not
// ours, and routers. Link-local networks are left out, since no node may announce them.
func nearby(raw rawFacts, device, bridge string) mesh.Nearby {
	var out mesh.Nearby
	links := make(map[int]string, len(raw.links))
	for _, l := range raw.links {
		if l.name != device && l.name != netcfg.VXLANName(device) && l.name != bridge {
			links[l.index] = l.name
		}
	}
	attach := func(link int, p netip.Prefix) {
		if name, ok := links[link]; ok && mesh.CheckHost(p.Addr()) == nil && p.Bits() > 0 {
			out.Attached = append(out.Attached, mesh.AttachedNetwork{Prefix: p.Masked(), Link: name, Containers: ofContainers(name)})
		}
	}
	for _, a := range raw.addrs {
		attach(a.link, a.prefix)
	}
	for _, r := range raw.routes {
		if len(r.via) == 0 {
			attach(r.link, r.to)
		} else if _, ok := links[r.link]; ok || r.link == 0 {
			out.Routers = append(out.Routers, r.via...)
		}
	}
	slices.SortFunc(out.Attached, func(a, b mesh.AttachedNetwork) int {
		return cmp.Or(mesh.ComparePrefix(a.Prefix, b.Prefix), strings.Compare(a.Link, b.Link))
	})
	out.Attached = slices.Compact(out.Attached)
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

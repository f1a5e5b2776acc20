// SPDX-License-Identifier: Apache-2.0

package connect

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"

	"github.com/meshd/meshd/internal/config"
	"github.com/meshd/meshd/internal/mesh"
)

// LinkFile is the file of a link of a node to another cluster.
type LinkFile struct {
	Name string // of the device, and of the other cluster
	File
}

// ReadLinks reads the files that node.links of the configuration at path names. Errors are of type
// *config.Error, unless a file can't be read.
func ReadLinks(path string, cfg config.Config) (out []LinkFile, errs []error) {
	networks := len(cfg.Node.AllowedLocationIPs)
	for i, name := range cfg.Node.Links {
		bad := func(err error, advice string) {
			errs = append(errs, &config.Error{File: path, Key: fmt.Sprintf("node.links[%d]", i), Problem: err.Error(), Advice: advice})
		}
		f, err := readLink(name, cfg.Cluster)
		if errors.Is(err, fs.ErrPermission) {
			errs = append(errs, err)
			continue
		}
		if err != nil {
			bad(err, "put that right, or remove the file from node.links")
			continue
		}
		if networks += len(f.Networks()); networks > mesh.MaxCIDRs {
			bad(fmt.Errorf("with %s, %d networks are behind this node, among them those of node.allowed-location-ips", name, networks),
				fmt.Sprintf("keep at most %d; another node can have this link", mesh.MaxCIDRs))
			continue
		}
		out = append(out, LinkFile{config.LinkName(name), f})
	}
	return out, errs
}

// readLink reads the file of a link to another cluster: one that meshd client add has printed there.
// Own is the cluster of this node. Errors name the file, and say what to do.
func readLink(path string, own mesh.Cluster) (f File, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return f, fmt.Errorf("read the file of a link: %w; copy there what meshd client add printed in the other cluster", err)
	}
	if f, err = ParseFile(string(text)); err != nil {
		return f, fmt.Errorf("%s: %w; use a file that meshd client add has written in the other cluster", path, err)
	}
	if f.grantsInternet() {
		return f, fmt.Errorf("%s: it was made with --access internet, and a link leads to a cluster only; add the client again without that", path)
	}
	if n := len(f.Config.Ranges); n > mesh.MaxCIDRs {
		return f, fmt.Errorf("%s: it names %d networks, and a node can have %d behind it; add the client again with fewer networks in --access", path, n, mesh.MaxCIDRs)
	}
	if err := own.CheckOther(f.Config.Cluster, f.Config.Ranges); err != nil {
		return f, fmt.Errorf("%s: %w", path, err)
	}
	return f, nil
}

// Networks returns the networks to which a link leads: the ranges of the other cluster that its access
// list names.
func (f File) Networks() []netip.Prefix { return f.Config.Ranges }

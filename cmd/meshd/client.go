// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/meshd/meshd/internal/control"
	"github.com/spf13/cobra"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
	"rsc.io/qr"
)

func newClient(p *paths) *cobra.Command {
	return newGroup("client", "Give laptops and phones access to the cluster",
		newClientAdd(p), newClientList(p), newClientShow(p), newClientRemove(p))
}

// addOptions are the arguments of client add.
type addOptions struct {
	request   control.ClientRequest
	preshared bool   // generate a preshared key
	qr        string // where to show a QR code: qrTerminal, a new file, or "" for none
	file      string
	warnings  io.Writer
}

func newClientAdd(p *paths) *cobra.Command {
	var (
		out output
		o   addOptions
	)
	cmd := &cobra.Command{
		Use:   "add NAME",
		Short: "Add a client, and print its WireGuard configuration",
		Long: `Add a client on all nodes, and print its configuration for wg-quick(8), which the
WireGuard apps of all systems can read. NAME must be a valid host name and differ
from the names of all other clients and nodes, ignoring case. The private key is
generated here, printed once and not stored; with --public-key it stays on the
client, and the configuration has a placeholder.

--access limits what the client may reach: pods, services, nodes, internet, an address
or a network, each with tcp/PORT@ or udp/PORT@ before it to allow that port only. The
node where the client's tunnel ends enforces it. A network that no node routes to causes
a warning. With internet, all that the client's own routes don't lead elsewhere goes to a
node with node.exit, in both families.

--networks makes the client a router with networks behind it: all nodes and pods reach
these through it, and what is there may reach what --access names. Several clients may
have the same network: the one that was added first carries it as long as nodes hear
it. --offers limits what is reached there, in the same words as --access.

--cluster joins this cluster to another one that runs meshd: the client is a node of that
cluster, and --networks are its ranges, which must differ from those of this cluster. All
clients with the same --cluster are shown as one cluster by meshd status and meshd graph.

--no-internal-ips leaves the internal IPs of the nodes out of the configuration, now and
when it is printed again: use it for a laptop whose own networks may have the same
addresses, such as 192.168.1.0/24. Nodes are reached by their overlay addresses then.

The configuration does not follow later changes. When nodes are added or removed, get
other endpoints, or a location gets another gateway, print it again with meshd client
show, or use meshd connect.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if err := cobra.ExactArgs(1)(cmd, args); err != nil && o.qr == qrTerminal && checkQR(args[len(args)-1]) == nil {
				return fmt.Errorf("%w; a file for the QR code is named with =, as in --qr=%s", err, args[len(args)-1])
			} else if err != nil {
				return err
			}
			return checkQR(o.qr)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			o.request.Name, o.warnings = args[0], cmd.ErrOrStderr()
			return addClient(cmd.Context(), p.client(), o, func(c addedClient, text func(io.Writer) error) error {
				return out.print(cmd.OutOrStdout(), c, text)
			})
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.request.PublicKey, "public-key", "", "the client's public `key`, if it generated its keys itself")
	flags.BoolVar(&o.preshared, "psk", false, "also generate a preshared key")
	flags.StringVar(&o.qr, "qr", "", "show a QR code, for the WireGuard app of a phone, in the terminal, or in a new `file` whose name ends in .png or .svg, mode 0600")
	flags.Lookup("qr").NoOptDefVal = qrTerminal
	flags.StringVar(&o.file, "out", "", "write the configuration to a new `file`, mode 0600, instead of standard output")
	flags.StringSliceVar(&o.request.Access, "access", []string{"pods", "services", "nodes"}, "`list` of what the client may reach")
	flags.BoolVar(&o.request.NoInternalIPs, "no-internal-ips", false, "leave out the internal IPs of the nodes, which the client's own networks may have, too")
	flags.StringSliceVar(&o.request.Networks, "networks", nil, "`list` of networks behind the client, which is a router then")
	flags.StringSliceVar(&o.request.Offers, "offers", nil, "`list` of what nodes and pods may reach in these networks (default everything)")
	flags.StringVar(&o.request.Endpoint, "endpoint", "", "`host:port` at which the client waits for nodes, for a router with a public address")
	flags.StringVar(&o.request.Cluster, "cluster", "", "`name` of another cluster, whose ranges the networks are")
	flags.StringVar(&o.request.ServiceGateway, "service-gateway", "", "the `node` through which the client reaches Services, and the internet if it has node.exit (default the best)")
	completeFlag(cmd, p, "service-gateway", allNodeNames)
	out.register(cmd)
	return cmd
}

// addedClient is a new client with its secrets, which are empty if they were written to a
// file.
type addedClient struct {
	control.ClientConfig
	PrivateKey   string `json:"privateKey"`
	PresharedKey string `json:"presharedKey"`
	Config       string `json:"config"` // for wg-quick
}

// addClient generates the secrets, has the daemon add the client, and prints it. It
// creates the files first, so that no client is added whose key can't be saved.
func addClient(ctx context.Context, daemon *control.Client, o addOptions, show func(addedClient, func(io.Writer) error) error) (err error) {
	if o.qr != "" && o.request.PublicKey != "" {
		return usageError{errors.New("--qr and --public-key exclude each other: a QR code needs the private key")}
	}
	var c addedClient
	if err := c.makeKeys(&o); err != nil {
		return err
	}
	var files secretFiles
	defer func() { err = files.close(err) }()
	for _, name := range o.files() {
		if err := files.create(name); err != nil {
			return err
		}
	}
	if c.ClientConfig, err = daemon.AddClient(ctx, o.request); err != nil {
		return err
	}
	warnUnserved(o.warnings, c.ClientConfig)
	c.Config = wgQuick(c.ClientConfig, c.PrivateKey, c.PresharedKey)
	text, err := c.write(files, o)
	if err == nil {
		err = show(c, text)
	}
	if err != nil {
		return undo(ctx, daemon, c.ID.String(), err)
	}
	return nil
}

// files returns the names of the files to write.
func (o addOptions) files() (names []string) {
	if o.file != "" {
		names = append(names, o.file)
	}
	if o.qr != "" && o.qr != qrTerminal {
		names = append(names, o.qr)
	}
	return names
}

// write writes the configuration and its QR code to the files, if there are any, and removes the
// secrets from c then. It returns how to print the client.
func (c *addedClient) write(files secretFiles, o addOptions) (text func(io.Writer) error, err error) {
	var code *qr.Code
	if o.qr != "" {
		if code, err = encodeQR(withoutComments(c.Config)); err != nil {
			return nil, err
		}
	}
	config, written := c.Config, ""
	for _, f := range files {
		content, what := []byte(config), "configuration"
		if f.Name() == o.qr {
			content, what = qrFormats[filepath.Ext(o.qr)](code), "QR code"
		}
		if _, err := f.Write(content); err != nil {
			return nil, fmt.Errorf("write the %s: %w", what, err)
		}
		written += fmt.Sprintf("The %s of %s is in %s.\n", what, c.Name, f.Name())
		c.PrivateKey, c.PresharedKey, c.Config = "", "", ""
	}
	return func(w io.Writer) error {
		if o.qr == qrTerminal {
			return printQR(w, code)
		}
		_, err := io.WriteString(w, cmp.Or(written, config))
		return err
	}, nil
}

// secretFiles are new files that only their owner can read.
type secretFiles []*os.File

// create creates a file. It does not overwrite one.
func (s *secretFiles) create(name string) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	switch {
	case errors.Is(err, fs.ErrExist):
		return fmt.Errorf("write the configuration: %w; choose another name, or remove that file", err)
	case err != nil:
		return fmt.Errorf("write the configuration: %w", err)
	}
	*s = append(*s, f)
	return nil
}

// close closes the files, and removes them if that fails or something has failed before.
func (s secretFiles) close(before error) error {
	err := before
	for _, f := range s {
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		for _, f := range s {
			_ = os.Remove(f.Name())
		}
	}
	return err
}

// warnUnserved warns of networks in a client's access list that no node routes to.
func warnUnserved(w io.Writer, c control.ClientConfig) {
	for _, a := range c.Unserved {
		if strings.HasSuffix(a, "internet") {
			fmt.Fprintf(w, "warning: %s may reach %s, but no node offers it now; set node.exit: true on a node with an endpoint\n", c.Name, a)
			continue
		}
		fmt.Fprintf(w, "warning: %s may reach %s, but no node routes to that; add it to node.allowed-location-ips of a node that can reach it\n", c.Name, a)
	}
}

// undo removes a client whose configuration could not be printed or saved.
func undo(ctx context.Context, daemon *control.Client, id string, cause error) error {
	if _, err := daemon.RemoveClient(ctx, id); err != nil {
		return fmt.Errorf("%w; the client was added, and can't be removed again; run meshd client remove: %w", cause, err)
	}
	return fmt.Errorf("%w; the client was removed again", cause)
}

// makeKeys generates the secrets that the options don't contain.
func (c *addedClient) makeKeys(o *addOptions) error {
	if o.request.PublicKey == "" {
		key, err := wgtypes.GeneratePrivateKey()
		if err != nil {
			return fmt.Errorf("generate private key: %w", err)
		}
		c.PrivateKey, o.request.PublicKey = key.String(), key.PublicKey().String()
	}
	if o.preshared {
		key, err := wgtypes.GenerateKey()
		if err != nil {
			return fmt.Errorf("generate preshared key: %w", err)
		}
		c.PresharedKey, o.request.PresharedKey = key.String(), key.String()
	}
	return nil
}

func newClientList(p *paths) *cobra.Command {
	out := output{formats: []string{"text", "wide", "json"}}
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the clients, and the state of their tunnels to this node",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := p.client().Status(cmd.Context())
			if err != nil {
				return err
			}
			return out.print(cmd.OutOrStdout(), s.Clients, func(w io.Writer) error {
				if len(s.Clients) == 0 {
					_, err := fmt.Fprintln(w, "No clients.")
					return err
				}
				v := view{wide: out.is("wide"), colors: hasColors(w)}
				_, err := io.WriteString(w, v.clients(s.Clients, time.Now()))
				return err
			})
		},
	}
	out.register(cmd)
	return cmd
}

func newClientShow(p *paths) *cobra.Command {
	var out output
	cmd := &cobra.Command{
		Use:               "show NAME",
		ValidArgsFunction: completeNames(p, clientNames),
		Short:             "Print a client's current WireGuard configuration, without secrets",
		Long: `Print a client's current WireGuard configuration. It has placeholders for the private
key and the preshared key; copy these from the client's old configuration.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := p.client().ClientConfig(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			shown := struct {
				control.ClientConfig
				Config string `json:"config"` // for wg-quick
			}{c, wgQuick(c, "", "")}
			warnUnserved(cmd.ErrOrStderr(), c)
			return out.print(cmd.OutOrStdout(), shown, func(w io.Writer) error {
				_, err := io.WriteString(w, shown.Config)
				return err
			})
		},
	}
	out.register(cmd)
	return cmd
}

func newClientRemove(p *paths) *cobra.Command {
	var out output
	cmd := &cobra.Command{
		Use:               "remove NAME",
		Aliases:           []string{"rm"},
		ValidArgsFunction: completeNames(p, clientNames),
		Short:             "Remove a client from all nodes, and end its sessions",
		Long: `Remove a client from all nodes, and end its sessions. NAME is its name or its ID.
Nodes that are down remove it when they return. Its key is not accepted any more; a
client that is added later under the same name is a new client.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := p.client().RemoveClient(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return out.print(cmd.OutOrStdout(), r, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "Client %s (%v) was removed.\n", r.Name, r.ID)
				return err
			})
		},
	}
	out.register(cmd)
	return cmd
}

// wgQuick formats a configuration for wg-quick(8), with placeholders for secrets that are
// "". Only meshd connect reads the comments: which nodes' answers to accept, and for which
// networks.
func wgQuick(c control.ClientConfig, privateKey, presharedKey string) string {
	placeholder := func(secret, what string) string {
		if secret == "" {
			return fmt.Sprintf("<%s of %s>", what, c.Name)
		}
		return secret
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# %s in the cluster %s\n[Interface]\n# meshd-cluster = %s\n# meshd-ranges = %s\n", c.Name, c.Cluster, c.Cluster, join(c.Ranges))
	if len(c.Networks) > 0 {
		fmt.Fprintf(&b, "# A router for %s: it forwards packets between these networks and the tunnel, without NAT.\n", join(c.Networks))
	}
	if privateKey == "" {
		b.WriteString("# Put the secrets in place of < >: meshd does not have them.\n")
	}
	fmt.Fprintf(&b, "PrivateKey = %s\n", placeholder(privateKey, "private key"))
	var addresses []string
	for _, a := range c.Overlay {
		addresses = append(addresses, fmt.Sprintf("%s/%d", a, a.BitLen()))
	}
	fmt.Fprintf(&b, "Address = %s\n", strings.Join(addresses, ", "))
	if c.Resolver != "" {
		fmt.Fprintf(&b, "DNS = %s\n", strings.Join(append([]string{c.Resolver}, c.Search...), ", "))
	}
	if c.ListenPort != 0 {
		fmt.Fprintf(&b, "ListenPort = %d\n", c.ListenPort)
	}
	fmt.Fprintf(&b, "MTU = %d\n", c.MTU)
	for _, p := range c.Peers {
		services := ""
		if p.ServiceGateway {
			services = ", and Services"
		}
		if p.IsExit() {
			services += ", and the internet"
		}
		fmt.Fprintf(&b, "\n# %s%s\n[Peer]\n# meshd-node = %v, %v\nPublicKey = %s\n", p.Name, services, p.ID, p.Overlay, p.PublicKey)
		if c.PresharedKey {
			fmt.Fprintf(&b, "PresharedKey = %s\n", placeholder(presharedKey, "preshared key"))
		}
		fmt.Fprintf(&b, "Endpoint = %s\nAllowedIPs = %s\nPersistentKeepalive = %d\n", p.Endpoint, join(p.AllowedIPs), c.Keepalive)
	}
	return b.String()
}

// withoutComments returns a configuration without comments and empty lines: apps on phones
// drop them, and a QR code has little room.
func withoutComments(config string) string {
	var b strings.Builder
	for line := range strings.Lines(config) {
		if !strings.HasPrefix(line, "#") && line != "\n" {
			b.WriteString(line)
		}
	}
	return b.String()
}

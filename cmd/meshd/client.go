// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/meshd/meshd/internal/control"
	"github.com/spf13/cobra"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

func newClient(p *paths) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "client",
		Short: "Let laptops and phones into the cluster, and out again",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newClientAdd(p), newClientList(p), newClientShow(p), newClientRemove(p))
	return cmd
}

// clientWish is what client add is told.
type clientWish struct {
	request   control.ClientRequest
	preshared bool
	qr        bool
	file      string
	warnings  io.Writer
}

func newClientAdd(p *paths) *cobra.Command {
	var (
		out  output
		wish clientWish
	)
	cmd := &cobra.Command{
		Use:   "add NAME",
		Short: "Add a client on all nodes, and print its WireGuard configuration",
		Long: `Add a client on all nodes, and print its configuration for wg-quick(8), which the
WireGuard applications of all systems read. NAME is as a host name, and that of no
other client and no node, in upper or lower case. The private key
in it is made here, printed this once, and kept nowhere; with --public-key it stays
where it was made, and the configuration has a placeholder.

With --access the client reaches no more than what is listed there: pods, services,
nodes, an address or a network, each with tcp/PORT@ or udp/PORT@ before it to allow
one port only. It is enforced on the node where the client's tunnel ends. What
no node serves is warned of.

The configuration is of the moment. When nodes come, go, or get other endpoints, or
another node becomes the gateway of its location, see meshd client show.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), askTimeout)
			defer cancel()
			wish.request.Name, wish.warnings = args[0], cmd.ErrOrStderr()
			return addClient(ctx, p.client(), wish, func(c addedClient, text func(io.Writer) error) error {
				return out.print(cmd.OutOrStdout(), c, text)
			})
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&wish.request.PublicKey, "public-key", "", "the client's public `key`, if it has made its keys itself")
	flags.BoolVar(&wish.preshared, "psk", false, "make a preshared key, too")
	flags.BoolVar(&wish.qr, "qr", false, "print a QR code, for the application on a phone")
	flags.StringVar(&wish.file, "out", "", "write the configuration to a new `file` of mode 0600, not to the terminal")
	flags.StringSliceVar(&wish.request.Access, "access", []string{"pods", "services", "nodes"}, "`list` of what the client may reach")
	flags.StringVar(&wish.request.ServiceGateway, "service-gateway", "", "the `node` through which the client reaches Services (default the best)")
	out.register(cmd)
	return cmd
}

// addedClient is a new client with its secrets, which stay empty where they are in a
// file.
type addedClient struct {
	control.ClientConfig
	PrivateKey   string `json:"privateKey"`
	PresharedKey string `json:"presharedKey"`
	Config       string `json:"config"` // for wg-quick
}

// addClient makes what secrets are missing, has the client added, and prints it. The
// file is made first: nothing is to be added whose key can't be kept.
func addClient(ctx context.Context, daemon *control.Client, wish clientWish, show func(addedClient, func(io.Writer) error) error) (err error) {
	if wish.qr && wish.request.PublicKey != "" {
		return usageError{errors.New("--qr needs the private key, which is not known with --public-key")}
	}
	var c addedClient
	if err := c.makeKeys(&wish); err != nil {
		return err
	}
	var file *os.File
	if wish.file != "" {
		if file, err = os.OpenFile(wish.file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
			return fmt.Errorf("write the configuration: %w", err)
		}
		defer func() {
			err = errors.Join(err, file.Close())
			if err != nil {
				_ = os.Remove(wish.file)
			}
		}()
	}
	if c.ClientConfig, err = daemon.AddClient(ctx, wish.request); err != nil {
		return err
	}
	warnUnserved(wish.warnings, c.ClientConfig)
	c.Config = wgQuick(c.ClientConfig, c.PrivateKey, c.PresharedKey)
	text := func(w io.Writer) error {
		_, err := io.WriteString(w, c.Config)
		return err
	}
	if wish.qr {
		config := withoutComments(c.Config)
		text = func(w io.Writer) error { return printQR(w, config) }
	}
	if file != nil {
		if _, err := io.WriteString(file, c.Config); err != nil {
			return undo(ctx, daemon, c.ID.String(), fmt.Errorf("write the configuration: %w", err))
		}
		c.PrivateKey, c.PresharedKey, c.Config = "", "", ""
		if !wish.qr {
			text = func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "The configuration of %s is in %s.\n", c.Name, wish.file)
				return err
			}
		}
	}
	if err := show(c, text); err != nil {
		return undo(ctx, daemon, c.ID.String(), err)
	}
	return nil
}

// warnUnserved warns of networks in a client's access list that no node leads to.
func warnUnserved(w io.Writer, c control.ClientConfig) {
	for _, a := range c.Unserved {
		fmt.Fprintf(w, "warning: %s may reach %s, but no node serves that; a node does if its node.allowed-location-ips names it\n", c.Name, a)
	}
}

// undo removes a client whose configuration nobody got to see.
func undo(ctx context.Context, daemon *control.Client, id string, cause error) error {
	if _, err := daemon.RemoveClient(ctx, id); err != nil {
		return fmt.Errorf("%w; and the client is there: remove it: %w", cause, err)
	}
	return fmt.Errorf("%w; the client was removed again", cause)
}

// makeKeys makes the secrets that a wish leaves to us.
func (c *addedClient) makeKeys(wish *clientWish) error {
	if wish.request.PublicKey == "" {
		key, err := wgtypes.GeneratePrivateKey()
		if err != nil {
			return fmt.Errorf("make private key: %w", err)
		}
		c.PrivateKey, wish.request.PublicKey = key.String(), key.PublicKey().String()
	}
	if wish.preshared {
		key, err := wgtypes.GenerateKey()
		if err != nil {
			return fmt.Errorf("make preshared key: %w", err)
		}
		c.PresharedKey, wish.request.PresharedKey = key.String(), key.String()
	}
	return nil
}

func newClientList(p *paths) *cobra.Command {
	var out output
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the clients, and how their tunnels to this node fare",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), askTimeout)
			defer cancel()
			s, err := p.client().Status(ctx)
			if err != nil {
				return err
			}
			return out.print(cmd.OutOrStdout(), s.Clients, func(w io.Writer) error {
				if len(s.Clients) == 0 {
					_, err := fmt.Fprintln(w, "No clients.")
					return err
				}
				return printClients(w, s.Clients, time.Now())
			})
		},
	}
	out.register(cmd)
	return cmd
}

func printClients(w io.Writer, clients []control.ClientStatus, now time.Time) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "CLIENT\tOVERLAY\tACCESS\tADDED BY\tENDPOINT\tHANDSHAKE\tRECEIVED\tSENT")
	for _, c := range clients {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", c.Name, join(c.Overlay), join(c.Access), c.AddedBy,
			endpoint(c.Endpoint), age(c.LastHandshake, now), size(c.Received), size(c.Sent))
	}
	return t.Flush()
}

func newClientShow(p *paths) *cobra.Command {
	var out output
	cmd := &cobra.Command{
		Use:   "show NAME",
		Short: "Print a client's WireGuard configuration as it would be now, without secrets",
		Long: `Print a client's WireGuard configuration as it would be now. Where the private key
and the preshared key belong it has placeholders: put in what the client has.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), askTimeout)
			defer cancel()
			c, err := p.client().ClientConfig(ctx, args[0])
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
		Use:   "remove NAME",
		Short: "Remove a client from all nodes, and end its sessions",
		Long: `Remove a client from all nodes, and end its sessions. NAME is its name or its ID.
Nodes that are down remove it when they return. Its key is worth nothing from then
on; a client that is added under the same name later is another one.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), askTimeout)
			defer cancel()
			r, err := p.client().RemoveClient(ctx, args[0])
			if err != nil {
				return err
			}
			return out.print(cmd.OutOrStdout(), r, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "Client %s (%v) is removed.\n", r.Name, r.ID)
				return err
			})
		},
	}
	out.register(cmd)
	return cmd
}

// wgQuick writes a configuration as wg-quick(8) reads it. Secrets that are not known
// are placeholders. Comments have what only meshd connect reads: whose answers count,
// and how far they may go.
func wgQuick(c control.ClientConfig, privateKey, presharedKey string) string {
	placeholder := func(secret, what string) string {
		if secret == "" {
			return fmt.Sprintf("<%s of %s>", what, c.Name)
		}
		return secret
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# %s in the cluster %s\n[Interface]\n# meshd-cluster = %s\n# meshd-ranges = %s\n", c.Name, c.Cluster, c.Cluster, commas(c.Ranges))
	fmt.Fprintf(&b, "PrivateKey = %s\n", placeholder(privateKey, "private key"))
	var addresses []string
	for _, a := range c.Overlay {
		addresses = append(addresses, fmt.Sprintf("%s/%d", a, a.BitLen()))
	}
	fmt.Fprintf(&b, "Address = %s\n", strings.Join(addresses, ", "))
	if c.Resolver != "" {
		fmt.Fprintf(&b, "DNS = %s\n", strings.Join(append([]string{c.Resolver}, c.Search...), ", "))
	}
	fmt.Fprintf(&b, "MTU = %d\n", c.MTU)
	for _, p := range c.Peers {
		services := ""
		if p.ServiceGateway {
			services = ", and Services"
		}
		fmt.Fprintf(&b, "\n# %s%s\n[Peer]\n# meshd-node = %v, %v\nPublicKey = %s\n", p.Name, services, p.ID, p.Overlay, p.PublicKey)
		if c.PresharedKey {
			fmt.Fprintf(&b, "PresharedKey = %s\n", placeholder(presharedKey, "preshared key"))
		}
		fmt.Fprintf(&b, "Endpoint = %s\nAllowedIPs = %s\nPersistentKeepalive = %d\n", p.Endpoint, commas(p.AllowedIPs), c.Keepalive)
	}
	return b.String()
}

// commas lists prefixes as wg-quick takes them.
func commas(ps []netip.Prefix) string { return strings.ReplaceAll(join(ps), ",", ", ") }

// withoutComments returns a configuration without comments and empty lines: a phone
// keeps none, and a QR code has little room.
func withoutComments(config string) string {
	var b strings.Builder
	for line := range strings.Lines(config) {
		if !strings.HasPrefix(line, "#") && line != "\n" {
			b.WriteString(line)
		}
	}
	return b.String()
}

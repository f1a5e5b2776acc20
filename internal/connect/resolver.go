// SPDX-License-Identifier: Apache-2.0

package connect

import (
	"context"
	"fmt"
	"os/exec"
	"strings"

	"github.com/meshd/meshd/internal/control"
)

// setResolver tells resolvconf(8), which systemd-resolved and openresolv have, whom to
// ask for names, as wg-quick(8) does: as what counts alone, and with our link. A system
// without it goes on as it is.
func (c *client) setResolver(ctx context.Context, config control.ClientConfig) error {
	text := ""
	if config.Resolver != "" {
		text = "nameserver " + config.Resolver + "\n"
		if len(config.Search) > 0 {
			text += "search " + strings.Join(config.Search, " ") + "\n"
		}
	}
	if text == c.resolver {
		return nil
	}
	path, err := exec.LookPath("resolvconf")
	if err != nil {
		c.Logger.Warn("resolvconf is not installed: names of the cluster don't resolve")
		c.resolver = text
		return nil
	}
	cmd := exec.CommandContext(ctx, path, "-d", c.Interface, "-f")
	if text != "" {
		cmd = exec.CommandContext(ctx, path, "-a", c.Interface, "-m", "0", "-x")
		cmd.Stdin = strings.NewReader(text)
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("set resolver: resolvconf: %w: %s", err, strings.TrimSpace(string(out)))
	}
	c.resolver = text
	return nil
}

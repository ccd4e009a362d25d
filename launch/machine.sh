#!/usr/bin/env bash
# Run on a rented machine by cloud.sh, in the home directory: installs the project, EXTRAS with it, and makes a service of
# realm.sh that starts now, again after a failure, and at each boot.
#   bash realm/launch/machine.sh EXTRAS
set -euo pipefail
extras="${1:?name the extras, as in tpu,gcs}"
cp realm.sh realm/
cd realm
# The images' own Python is older than 3.11.
python3 -m pip install --quiet --user uv
uv="$HOME/.local/bin/uv"
"$uv" python install 3.12
PYTHON="$("$uv" python find 3.12)"
export PYTHON
source launch/environment.sh
make_environment "[$extras]"
# What systemd calls a failure is each status but 0: that of hosts which lost another one, and 75, with which a run ends
# that was saved on SIGTERM.
sudo tee /etc/systemd/system/realm.service > /dev/null << UNIT
[Unit]
Description=$(tail -n 1 realm.sh | cut -c 1-60)
After=network-online.target
StartLimitIntervalSec=3600
StartLimitBurst=10
[Service]
User=$USER
WorkingDirectory=$PWD
ExecStart=/bin/bash realm.sh
Restart=on-failure
RestartSec=15
[Install]
WantedBy=multi-user.target
UNIT
sudo systemctl daemon-reload
sudo systemctl enable --now realm

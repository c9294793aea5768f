from dpo_workbench.cli import main

main()
